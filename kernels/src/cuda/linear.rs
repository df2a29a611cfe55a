//! Matrix products by cuBLASLt. Descriptors and algorithm are chosen once a shape: the library's
//! first proposal, until `tune` has measured them all.
#![expect(unsafe_code, reason = "cuBLASLt's API is C")]

use super::device::{Device, DeviceMemory};
use crate::ops::OpError;
use cudarc::cublaslt::{result as lt, sys};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::c_void;
use std::mem::MaybeUninit;

/// Bytes that an algorithm may use beside its operands; NVIDIA's advice for Hopper.
const WORKSPACE: usize = 32 << 20;

/// Shapes of a product: `out[rows][outputs] = x[rows][inputs] · w[outputs][inputs]ᵀ`, or `+=`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Product {
    pub rows: usize,
    pub outputs: usize,
    pub inputs: usize,
    /// Whether `out` is f32 and not bf16.
    pub wide: bool,
}

/// Device addresses of a product's operands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operands {
    pub x: u64,
    pub weight: u64,
    pub out: u64,
    /// Whether `out` is added to.
    pub add: bool,
}

/// Algorithms that the library is asked for.
const PROPOSALS: usize = 8;

struct Plan {
    desc: sys::cublasLtMatmulDesc_t,
    weight: sys::cublasLtMatrixLayout_t,
    x: sys::cublasLtMatrixLayout_t,
    out: sys::cublasLtMatrixLayout_t,
    /// What the library thinks fastest comes first.
    proposals: Vec<sys::cublasLtMatmulAlgo_t>,
    chosen: usize,
}

/// The library, and plans by shape; they live as long as the process needs them.
pub(super) struct Products {
    handle: sys::cublasLtHandle_t,
    workspace: DeviceMemory,
    device: Device,
    plans: RefCell<HashMap<Product, Plan>>,
}

// SAFETY: handles and descriptors may move between threads; `RefCell` keeps them to one at a time.
unsafe impl Send for Products {}

fn failed(doing: &str, error: &lt::CublasError) -> OpError {
    OpError::Device(format!("cuBLASLt: {doing}: {error:?}"))
}

impl Products {
    pub fn new(device: &Device) -> Result<Self, OpError> {
        // SAFETY: it loads a library by its name, whose initialisers are NVIDIA's.
        if !unsafe { sys::is_culib_present() } {
            let text = "libcublasLt.so.13 is not found: install CUDA 13's cuBLAS, or add its folder \
                        to LD_LIBRARY_PATH";
            return Err(OpError::Device(text.to_owned()));
        }
        device.bind()?;
        let handle = lt::create_handle().map_err(|e| failed("starting", &e))?;
        let workspace = device.allocate(WORKSPACE)?;
        let plans = RefCell::default();
        Ok(Self { handle, workspace, device: device.clone(), plans })
    }

    /// Enqueues a product.
    ///
    /// # Safety
    /// The operands have the product's shapes and live until the stream has passed this.
    pub unsafe fn run(&self, product: Product, operands: Operands) -> Result<(), OpError> {
        if product.rows == 0 {
            return Ok(());
        }
        self.device.bind()?;
        let mut plans = self.plans.borrow_mut();
        let plan = self.planned(&mut plans, product)?;
        let Operands { x, weight, out, add } = operands;
        let (one, kept) = (1.0_f32, if add { 1.0_f32 } else { 0.0 });
        // SAFETY: the caller's promise; the plan's layouts are of this product's shapes; scalars
        // are read before the call returns; the workspace is ours, and the stream orders its users.
        unsafe {
            lt::matmul(
                self.handle,
                plan.desc,
                (&raw const one).cast(),
                (&raw const kept).cast(),
                weight as *const c_void,
                plan.weight,
                x as *const c_void,
                plan.x,
                out as *const c_void,
                plan.out,
                out as *mut c_void,
                plan.out,
                &raw const plan.proposals[plan.chosen],
                self.workspace.address() as *mut c_void,
                WORKSPACE,
                self.device.stream().cast(),
            )
        }
        .map_err(|e| failed(&format!("{product:?}"), &e))
    }

    /// Algorithms that the library proposes for a product.
    pub fn proposals(&self, product: Product) -> Result<usize, OpError> {
        Ok(self.planned(&mut self.plans.borrow_mut(), product)?.proposals.len())
    }

    /// Has later runs of a product take the `index`-th of them, or the last.
    pub fn choose(&self, product: Product, index: usize) -> Result<(), OpError> {
        let mut plans = self.plans.borrow_mut();
        let plan = self.planned(&mut plans, product)?;
        plan.chosen = index.min(plan.proposals.len() - 1);
        Ok(())
    }

    /// What the proposals depend on, beside the product.
    pub fn version(&self) -> String {
        // SAFETY: the library was found when this was made.
        let version = unsafe { sys::cublasLtGetVersion() };
        format!("{PROPOSALS} of cuBLASLt {version} on {}", self.device.name())
    }

    fn planned<'p>(
        &self,
        plans: &'p mut HashMap<Product, Plan>,
        product: Product,
    ) -> Result<&'p mut Plan, OpError> {
        Ok(match plans.entry(product) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => entry.insert(self.plan(product)?),
        })
    }

    /// Column-major to the library: `outᵀ = (wᵀ)ᵀ · xᵀ`.
    fn plan(&self, product: Product) -> Result<Plan, OpError> {
        let Product { rows, outputs, inputs, wide } = product;
        let failed = |e| failed(&format!("planning {product:?}"), &e);
        let (half, single) = (sys::cudaDataType::CUDA_R_16BF, sys::cudaDataType::CUDA_R_32F);
        let matrix = |element, height: usize, width: usize| {
            lt::create_matrix_layout(element, height as u64, width as u64, height as i64)
        };
        let desc = lt::create_matmul_desc(sys::cublasComputeType_t::CUBLAS_COMPUTE_32F, single)
            .map_err(failed)?;
        let weight = matrix(half, inputs, outputs).map_err(failed)?;
        let x = matrix(half, inputs, rows).map_err(failed)?;
        let out = matrix(if wide { single } else { half }, outputs, rows).map_err(failed)?;
        let preference = lt::create_matmul_pref().map_err(failed)?;
        let (transposed, workspace) = (1_i32, WORKSPACE);
        let mut results =
            [MaybeUninit::<sys::cublasLtMatmulHeuristicResult_t>::uninit(); PROPOSALS];
        let mut count = 0;
        // SAFETY: all descriptors are alive; attributes are read from values of their sizes; the
        // library writes `count` results, at most as many as there is room for.
        unsafe {
            lt::set_matmul_desc_attribute(
                desc,
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                (&raw const transposed).cast(),
                size_of_val(&transposed),
            )
            .map_err(failed)?;
            lt::set_matmul_pref_attribute(
                preference,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const workspace).cast(),
                size_of_val(&workspace),
            )
            .map_err(failed)?;
            let into = results.as_mut_ptr().cast();
            let most = PROPOSALS as i32;
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                desc,
                weight,
                x,
                out,
                out,
                preference,
                most,
                into,
                &raw mut count,
            )
            .result()
            .map_err(failed)?;
        }
        // SAFETY: it is destroyed only here.
        unsafe { lt::destroy_matmul_pref(preference) }.map_err(failed)?;
        // SAFETY: the library wrote so many.
        let results =
            results[..count as usize].iter().map(|result| unsafe { result.assume_init() });
        let usable = results.filter(|result| result.state.result().is_ok());
        let proposals: Vec<_> = usable.map(|result| result.algo).collect();
        if proposals.is_empty() {
            let text = format!("cuBLASLt has no algorithm for {product:?}");
            return Err(OpError::Device(text));
        }
        Ok(Plan { desc, weight, x, out, proposals, chosen: 0 })
    }
}
