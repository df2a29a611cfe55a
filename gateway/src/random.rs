//! Random bits.

/// For ids and seeds.
pub fn random() -> u64 {
    getrandom::u64().expect("the kernel gives random bytes on every system that we run on")
}
