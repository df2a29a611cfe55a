//! CUDA C++ to machine code by NVRTC, and a cache of it on disk.
//!
//! A cubin's name in the cache is a hash of all that it depends on: source, headers, architecture,
//! definitions, compiler version. A cache that cannot be read or written costs the compile time.
#![expect(unsafe_code, reason = "NVRTC's API is C")]

use crate::ops::OpError;
use cudarc::nvrtc::{result as nvrtc, sys};
use std::ffi::{CStr, CString};
use std::path::{Path, PathBuf};

/// Sources by stem, each one module.
pub const SOURCES: [(&str, &str); 11] = [
    ("attention", include_str!("../../cuda/attention.cu")),
    ("bias", include_str!("../../cuda/bias.cu")),
    ("decode_attention", include_str!("../../cuda/decode_attention.cu")),
    ("norm", include_str!("../../cuda/norm.cu")),
    ("prefill_attention", include_str!("../../cuda/prefill_attention.cu")),
    ("project", include_str!("../../cuda/project.cu")),
    ("rope", include_str!("../../cuda/rope.cu")),
    ("rows", include_str!("../../cuda/rows.cu")),
    ("sample", include_str!("../../cuda/sample.cu")),
    ("ship", include_str!("../../cuda/ship.cu")),
    ("silu", include_str!("../../cuda/silu.cu")),
];

/// What sources include.
const HEADERS: [(&CStr, &str); 13] = [
    (c"bf16.cuh", include_str!("../../cuda/bf16.cuh")),
    (c"decode_feed.cuh", include_str!("../../cuda/decode_feed.cuh")),
    (c"decode_merge.cuh", include_str!("../../cuda/decode_merge.cuh")),
    (c"decode_tile.cuh", include_str!("../../cuda/decode_tile.cuh")),
    (c"prefill_mma.cuh", include_str!("../../cuda/prefill_mma.cuh")),
    (c"prefill_wgmma.cuh", include_str!("../../cuda/prefill_wgmma.cuh")),
    (c"project_body.cuh", include_str!("../../cuda/project_body.cuh")),
    (c"project_parts.cuh", include_str!("../../cuda/project_parts.cuh")),
    (c"ptx.cuh", include_str!("../../cuda/ptx.cuh")),
    (c"ptx_hopper.cuh", include_str!("../../cuda/ptx_hopper.cuh")),
    (c"sample_cut.cuh", include_str!("../../cuda/sample_cut.cuh")),
    (c"sample_device.cuh", include_str!("../../cuda/sample_device.cuh")),
    (c"sample_types.cuh", include_str!("../../cuda/sample_types.cuh")),
];

/// A GPU architecture that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// Ampere, and what has no entry of its own (Ada, …).
    Sm80,
    /// Hopper, with its own instructions.
    Sm90a,
    /// Blackwell for data centres, with its own instructions.
    Sm100a,
}

impl Arch {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Sm80, Self::Sm90a, Self::Sm100a];

    /// For a device of this compute capability; `None` if it is too old.
    pub fn of((major, minor): (i32, i32)) -> Option<Self> {
        match (major, minor) {
            (9, 0) => Some(Self::Sm90a),
            (10, 0) => Some(Self::Sm100a),
            (8, _) => Some(Self::Sm80),
            // 10.3 and 12.0 have other instructions and less shared memory; not tried.
            _ => None,
        }
    }

    const fn option(self) -> &'static str {
        match self {
            Self::Sm80 => "--gpu-architecture=sm_80",
            Self::Sm90a => "--gpu-architecture=sm_90a",
            Self::Sm100a => "--gpu-architecture=sm_100a",
        }
    }
}

/// Machine code, and what the assembler said of registers and spills.
pub struct Cubin {
    /// An ELF image.
    pub image: Vec<u8>,
    /// Empty if it came from the cache.
    pub log: String,
}

/// Compiles a source for an architecture with `definitions` (`NAME=value`), past the cache.
///
/// # Errors
/// [`OpError::Device`] with the compiler's log, or if there is no NVRTC.
pub fn compile(
    (stem, text): (&str, &str),
    arch: Arch,
    definitions: &[String],
) -> Result<Cubin, OpError> {
    need_nvrtc()?;
    let failed = |what: &str| OpError::Device(format!("compiling {stem}.cu: {what}"));
    let bad = |_| failed("a zero byte in a source");
    let (name, text) = (CString::new(format!("{stem}.cu")), CString::new(text).map_err(bad)?);
    let name = name.map_err(bad)?;
    let program = Program::new(&name, &text).map_err(|code| failed(&code))?;
    let options = options(arch, definitions);
    // SAFETY: the program is alive, and options are passed by copies that outlive the call.
    let compiled = unsafe { nvrtc::compile_program(program.0, &options) };
    let log = program.log();
    compiled.map_err(|_| failed(&log))?;
    let image = program.cubin().map_err(|code| failed(&code))?;
    Ok(Cubin { image, log })
}

fn options(arch: Arch, definitions: &[String]) -> Vec<String> {
    let mut options = vec![arch.option().to_owned()];
    // Out of its own cache NVRTC gives a cubin without the assembler's words; we have our own.
    let fixed = ["--std=c++17", "--use_fast_math", "--ptxas-options=-v", "--no-cache"];
    options.extend(fixed.map(String::from));
    options.extend(definitions.iter().map(|definition| format!("-D{definition}")));
    options
}

fn need_nvrtc() -> Result<(), OpError> {
    // SAFETY: it loads a library by its name, whose initialisers are NVIDIA's.
    if unsafe { sys::is_culib_present() } {
        return Ok(());
    }
    let text = "libnvrtc.so.13 is not found: install the CUDA 13 toolkit's NVRTC, or add its folder \
                to LD_LIBRARY_PATH";
    Err(OpError::Device(text.to_owned()))
}

struct Program(sys::nvrtcProgram);

impl Program {
    fn new(name: &CStr, text: &CStr) -> Result<Self, String> {
        let bodies: Vec<_> =
            HEADERS.iter().filter_map(|(_, body)| CString::new(*body).ok()).collect();
        let bodies: Vec<_> = bodies.iter().map(|body| body.as_ptr()).collect();
        let names: Vec<_> = HEADERS.iter().map(|(name, _)| name.as_ptr()).collect();
        let mut program = std::ptr::null_mut();
        // SAFETY: all strings end in zero and live across the call, which copies them; both lists
        // have the length given.
        let code = unsafe {
            sys::nvrtcCreateProgram(
                &raw mut program,
                text.as_ptr(),
                name.as_ptr(),
                HEADERS.len() as i32,
                bodies.as_ptr(),
                names.as_ptr(),
            )
        };
        code.result().map_err(|code| format!("{code:?}"))?;
        Ok(Self(program))
    }

    fn log(&self) -> String {
        // SAFETY: the program is alive.
        let log = unsafe { nvrtc::get_program_log(self.0) }.unwrap_or_default();
        let bytes: Vec<u8> = log.iter().map(|&c| c.cast_unsigned()).collect();
        String::from_utf8_lossy(&bytes).trim_end_matches('\0').trim().to_owned()
    }

    fn cubin(&self) -> Result<Vec<u8>, String> {
        let mut len = 0;
        // SAFETY: the program is alive and compiled; `len` is written.
        let code = unsafe { sys::nvrtcGetCUBINSize(self.0, &raw mut len) };
        code.result().map_err(|code| format!("{code:?}"))?;
        let mut image = vec![0_u8; len];
        // SAFETY: `image` has the size that the program was just asked for.
        let code = unsafe { sys::nvrtcGetCUBIN(self.0, image.as_mut_ptr().cast()) };
        code.result().map_err(|code| format!("{code:?}"))?;
        Ok(image)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: it is destroyed only here. An error leaves a few bytes behind.
        let _ = unsafe { nvrtc::destroy_program(self.0) };
    }
}

/// A folder below `$XDG_CACHE_HOME/tandem` or `~/.cache/tandem`; none if there is no home.
pub(super) fn user_cache(folder: &str) -> Option<PathBuf> {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    Some(cache.or_else(home)?.join("tandem").join(folder))
}

/// Cubins on disk.
pub struct Cache(Option<PathBuf>);

impl Cache {
    /// `cubin` of the user's cache; none if there is no home.
    pub fn of_user() -> Self {
        Self(user_cache("cubin"))
    }

    /// What `load` makes of a cubin from the cache; of one that is compiled and put there, if there
    /// is none or it does not load: a disk may lose what was written before a power cut.
    ///
    /// # Errors
    /// As [`compile`], or what `load` returned of a fresh one.
    pub fn with<T>(
        &self,
        source: (&str, &str),
        (arch, definitions): (Arch, &[String]),
        load: impl Fn(&[u8]) -> Result<T, OpError>,
    ) -> Result<T, OpError> {
        need_nvrtc()?;
        let name = format!("{}-{}.cubin", source.0, key(source, arch, definitions));
        let path = self.0.as_ref().map(|folder| folder.join(&name));
        let cached = path.as_ref().and_then(|path| std::fs::read(path).ok());
        if let Some(Ok(loaded)) = cached.map(|image| load(&image)) {
            return Ok(loaded);
        }
        let cubin = compile(source, arch, definitions)?;
        // A full or read-only disk costs the next start its compile time and no more.
        drop(path.map(|path| write_whole(&path, &cubin.image)));
        load(&cubin.image)
    }
}

/// Under another name first, so that none is ever read that is cut short.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    // Processes of two containers may have one id.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let nanos = now.map_or(0, |now| now.as_nanos());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let part = folder.join(format!(".{}-{nanos}-{name}", std::process::id()));
    std::fs::write(&part, bytes)?;
    std::fs::rename(part, path)
}

fn key((stem, text): (&str, &str), arch: Arch, definitions: &[String]) -> String {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both are written; an error leaves zeros.
    let _ = unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    let mut hasher = blake3::Hasher::new();
    let mut add = |part: &str| {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    };
    add(stem);
    add(text);
    add(&format!("{major}.{minor}"));
    HEADERS.iter().for_each(|(_, body)| add(body));
    options(arch, definitions).iter().for_each(|option| add(option));
    hasher.finalize().to_hex()[..32].to_owned()
}
