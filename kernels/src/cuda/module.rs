//! Kernels that are loaded, and their launch.
#![expect(unsafe_code, reason = "the driver's API is C")]

use super::compile::{Arch, Cache, SOURCES};
use super::device::{Device, failed};
use crate::ops::OpError;
use cudarc::driver::{result, sys};
use std::ffi::{CString, c_void};
use std::mem::MaybeUninit;
use std::thread::ScopedJoinHandle;

/// A tensor in device memory as the copy engine of Hopper and later sees it: boxes of it are
/// fetched into shared memory with a swizzle of 128 bytes; what lies outside arrives as zeros.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TensorMap(sys::CUtensorMap);

impl TensorMap {
    /// Of bf16 at `address`: `sizes` of each dimension, innermost first, `strides` in bytes of all
    /// but the first, and a box's sizes.
    ///
    /// # Safety
    /// The memory is as large as sizes and strides say wherever a kernel uses the map.
    pub unsafe fn new<const N: usize>(
        address: u64,
        sizes: [u64; N],
        strides: &[u64],
        boxes: [u32; N],
    ) -> Result<Self, OpError> {
        assert_eq!(strides.len() + 1, N, "strides of a tensor map");
        let steps = [1_u32; N];
        let mut map = MaybeUninit::uninit();
        // SAFETY: the lists have `N` entries, or one less; the driver only computes with them.
        let code = unsafe {
            sys::cuTensorMapEncodeTiled(
                map.as_mut_ptr(),
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                N as u32,
                address as *mut c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        code.result().map_err(|e| failed("describing a tensor", e))?;
        // SAFETY: the driver wrote it.
        Ok(Self(unsafe { map.assume_init() }))
    }
}

/// One argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Arg<'a> {
    /// A device address, or a size in elements; 8 bytes.
    Wide(u64),
    /// A count.
    Count(u32),
    /// A number.
    Number(f32),
    /// What the tensor copy engine is to see; 128 bytes, by value.
    Map(&'a TensorMap),
}

/// A kernel's grid and block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub grid: (usize, usize),
    pub threads: usize,
    /// Dynamic shared memory, bytes.
    pub shared: usize,
    /// Blocks of a cluster, along x.
    pub cluster: usize,
}

impl Shape {
    /// Without shared memory and clusters.
    pub const fn plain(grid: (usize, usize), threads: usize) -> Self {
        Self { grid, threads, shared: 0, cluster: 1 }
    }
}

/// Which entry point of which source, and what it is compiled for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry<'a> {
    /// Stem of the source.
    pub stem: &'static str,
    pub name: &'static str,
    /// `NAME=value`.
    pub definitions: &'a [String],
    /// Most shared memory of a launch, bytes.
    pub shared: usize,
    /// Whether it may start before the kernel before it has ended (programmatic dependent launch):
    /// it waits itself before it touches what others write.
    pub overlaps: bool,
}

impl Entry<'_> {
    /// Without definitions and shared memory, overlapping.
    pub const fn plain(stem: &'static str, name: &'static str) -> Self {
        Self { stem, name, definitions: &[], shared: 0, overlaps: true }
    }
}

/// An entry point of a loaded module. Modules stay loaded until the process ends.
pub(crate) struct Kernel {
    function: sys::CUfunction,
    device: Device,
    name: &'static str,
    overlaps: bool,
}

// SAFETY: a function handle may be used from any thread that binds its context, as `launch` does.
unsafe impl Send for Kernel {}

impl Kernel {
    /// Compiles (or finds in the cache) and loads an entry point.
    pub fn load(device: &Device, entry: Entry<'_>) -> Result<Self, OpError> {
        let Entry { stem, name, definitions, shared, overlaps } = entry;
        let source = SOURCES.iter().find(|source| source.0 == stem);
        let &source = source.ok_or_else(|| OpError::Device(format!("no source {stem}.cu")))?;
        device.bind()?;
        let failed = |e| failed(&format!("loading {name} of {stem}.cu"), e);
        let module = Cache::of_user().with(source, (device.arch(), definitions), |image| {
            if !image.starts_with(b"\x7fELF") {
                return Err(OpError::Device(format!("{stem}.cu: no cubin")));
            }
            // SAFETY: the image is a cubin, which the driver checks and copies.
            unsafe { result::module::load_data(image.as_ptr().cast()) }.map_err(failed)
        })?;
        let entry = CString::new(name).map_err(|_| OpError::Device("a kernel's name".into()))?;
        // SAFETY: the module is loaded and never unloaded.
        let function = unsafe { result::module::get_function(module, entry) }.map_err(failed)?;
        let hopper = device.arch() != Arch::Sm80;
        let overlaps = overlaps && hopper;
        let kernel = Self { function, device: device.clone(), name, overlaps };
        // Beyond 48 KiB, and beyond 8 blocks of a cluster, a kernel must ask.
        use sys::CUfunction_attribute as Attribute;
        kernel.set(Attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES, shared)?;
        if shared > 0 {
            kernel.set(Attribute::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, 100)?;
        }
        if hopper {
            kernel.set(Attribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED, 1)?;
        }
        Ok(kernel)
    }

    fn set(&self, attribute: sys::CUfunction_attribute, value: usize) -> Result<(), OpError> {
        // SAFETY: the function is loaded.
        unsafe { result::function::set_function_attribute(self.function, attribute, value as i32) }
            .map_err(|e| failed(&format!("preparing {}", self.name), e))
    }

    /// For launches on another stream than the device's.
    pub fn function(&self) -> sys::CUfunction {
        self.function
    }

    /// Enqueues a launch; nothing if the grid is empty.
    ///
    /// # Safety
    /// The arguments are those of the kernel, in order and kind, and name memory that it may
    /// access and that lives until the stream has passed this launch.
    pub unsafe fn launch(&self, shape: Shape, arguments: &[Arg<'_>]) -> Result<(), OpError> {
        let Shape { grid: (x, y), threads, shared, cluster } = shape;
        if x == 0 || y == 0 {
            return Ok(());
        }
        self.device.bind()?;
        // Little-endian: the first bytes of a word are those of a narrower argument.
        let mut words: Vec<u64> = arguments
            .iter()
            .map(|&argument| match argument {
                Arg::Wide(value) => value,
                Arg::Count(value) => value.into(),
                Arg::Number(value) => value.to_bits().into(),
                Arg::Map(_) => 0,
            })
            .collect();
        let mut pointers: Vec<_> = words
            .iter_mut()
            .zip(arguments)
            .map(|(word, argument)| match argument {
                Arg::Map(map) => std::ptr::from_ref(&map.0).cast_mut().cast(),
                Arg::Wide(_) | Arg::Count(_) | Arg::Number(_) => std::ptr::from_mut(word).cast(),
            })
            .collect();
        let mut attributes = [overlapping(), clustered(cluster as u32)];
        let wanted = match (self.overlaps, cluster > 1) {
            (true, true) => &mut attributes[..],
            (true, false) => &mut attributes[..1],
            (false, true) => &mut attributes[1..],
            (false, false) => &mut [],
        };
        let config = sys::CUlaunchConfig {
            gridDimX: x as u32,
            gridDimY: y as u32,
            gridDimZ: 1,
            blockDimX: threads as u32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared as u32,
            hStream: self.device.stream(),
            attrs: wanted.as_mut_ptr(),
            numAttrs: wanted.len() as u32,
        };
        let none = std::ptr::null_mut();
        // SAFETY: the caller's promise; the driver copies configuration and arguments before it
        // returns.
        unsafe {
            sys::cuLaunchKernelEx(&raw const config, self.function, pointers.as_mut_ptr(), none)
        }
        .result()
        .map_err(|e| failed(&format!("launching {}", self.name), e))
    }
}

/// What a thread that loads kernels returned.
pub(crate) fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn overlapping() -> sys::CUlaunchAttribute {
    let id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    let value = sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
    sys::CUlaunchAttribute { id, pad: [0; 4], value }
}

fn clustered(blocks: u32) -> sys::CUlaunchAttribute {
    let id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION;
    // SAFETY: all bytes zero is a value of this plain union.
    let mut value: sys::CUlaunchAttributeValue = unsafe { std::mem::zeroed() };
    value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: blocks, y: 1, z: 1 };
    sys::CUlaunchAttribute { id, pad: [0; 4], value }
}
