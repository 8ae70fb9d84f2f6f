//! The C symbols: NVML, answered from the node that the library finds itself in.
//!
//! Each exported function is declared by [`exports!`], which counts the call, plays its faults, and turns
//! the `Result` of its body into NVML's code. The body answers from one [`NodeState`](crate::NodeState), taken at the start
//! of the call, so that an edit in between cannot show it half of two nodes.

mod abi;
mod call;
mod device;
mod events;
mod ffi;
mod handles;
mod instance;
mod lifecycle;
mod mig;
mod node;
mod profiles;
mod rights;
mod system;
mod topology;
mod unsupported;

/// Declares exported functions. The first name is that of the call in progress, for the bodies.
///
/// `init` functions work without a client that initialised NVML, and `*` faults leave them alone.
macro_rules! exports {
    ($kind:ident $call:ident; $($(#[$meta:meta])* fn $name:ident($($arg:ident: $type:ty),* $(,)?) $body:block)*) => {
        $(
            $(#[$meta])*
            #[unsafe(no_mangle)]
            extern "C" fn $name($($arg: $type),*) -> std::ffi::c_int {
                static ID: $crate::driver::call::Id = $crate::driver::call::Id::new(stringify!($name));
                $crate::driver::call::$kind(&ID, move |$call| {
                    // A body that needs nothing of the call leaves it unused.
                    let _ = $call;
                    $body
                })
            }
        )*
        /// The names, for counters and faults.
        pub(in crate::driver) const CALLS: &[&str] = &[$(stringify!($name)),*];
    };
}
use exports;

const LISTS: &[&[&str]] = &[
    system::init::CALLS,
    system::CALLS,
    device::CALLS,
    mig::CALLS,
    profiles::CALLS,
    instance::CALLS,
    lifecycle::CALLS,
    events::CALLS,
    topology::CALLS,
    unsupported::CALLS,
];

const COUNT: usize = {
    let mut count = 0;
    let mut list = 0;
    while list < LISTS.len() {
        count += LISTS[list].len();
        list += 1;
    }
    count
};

/// Every exported function that answers a code: what a fault can name, and what is counted.
pub const CALLS: [&str; COUNT] = {
    let mut calls = [""; COUNT];
    let mut at = 0;
    let mut list = 0;
    while list < LISTS.len() {
        let mut name = 0;
        while name < LISTS[list].len() {
            calls[at] = LISTS[list][name];
            at += 1;
            name += 1;
        }
        list += 1;
    }
    calls
};
