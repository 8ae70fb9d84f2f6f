//! What can go wrong between this program and the driver, in words that name the call.

use std::fmt;
use std::path::{Path, PathBuf};

use nvml_wrapper::error::NvmlError;
use nvml_wrapper_sys::bindings as sys;

use crate::inventory::{Trouble, TroubleKind};

/// The driver as a whole is not to be had. One GPU that does not answer is no such error: it stands in
/// [`Inventory::problems`](crate::inventory::Inventory::problems).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DriverError {
    /// The library is in none of the places looked at.
    #[error(
        "no NVIDIA driver found: {library} is in none of {} nor where the loader looks ({loader}); \
         is the driver installed, and its root visible here?",
        tried.join(", ")
    )]
    NotFound {
        /// The file name looked for.
        library: &'static str,
        /// Every folder that was tried, in order.
        tried: Vec<String>,
        /// What the loader said to the bare file name.
        loader: String,
    },
    /// A library is there, but it cannot be loaded or is not NVML.
    #[error("{} cannot be used: {reason}", library.display())]
    Unusable {
        /// The file.
        library: PathBuf,
        /// The loader's words, or what is missing.
        reason: String,
    },
    /// The library is there and no driver is behind it.
    #[error("the NVIDIA kernel driver is not loaded ({call}, asked through {})", library.display())]
    NotLoaded {
        /// The file that was opened.
        library: PathBuf,
        /// The call and NVML's answer.
        call: CallError,
    },
    /// Library and kernel driver are of different versions, as after an update without a reload.
    #[error(
        "{} and the loaded kernel driver are of different versions ({call}): \
         reload the driver, reboot, or show the driver root that belongs to it",
        library.display()
    )]
    VersionMismatch {
        /// The file that was opened.
        library: PathBuf,
        /// The call and NVML's answer.
        call: CallError,
    },
    /// A call about the driver as a whole does not come back. It is waited for.
    #[error("the NVIDIA driver does not answer: {call} has not come back yet")]
    NoAnswer {
        /// The function of NVML.
        call: &'static str,
    },
    /// NVML said no, for another reason.
    #[error("NVML cannot be used through {}: {call}", library.display())]
    Failed {
        /// The file that was opened.
        library: PathBuf,
        /// The call and NVML's answer.
        call: CallError,
    },
}

impl DriverError {
    /// The library that was opened, if one was.
    pub(super) fn library(&self) -> Option<&Path> {
        match self {
            Self::NotLoaded { library, .. }
            | Self::VersionMismatch { library, .. }
            | Self::Failed { library, .. } => Some(library),
            Self::NotFound { .. } | Self::Unusable { .. } | Self::NoAnswer { .. } => None,
        }
    }

    /// Whether a call about the driver as a whole does not come back.
    pub fn is_no_answer(&self) -> bool {
        matches!(self, Self::NoAnswer { .. })
    }

    /// Whether the kernel driver itself was gone, which no GPU outlives without a reset. All else may be over in a
    /// moment without that anything happened to a GPU: also a library of another version than the driver, which may
    /// be replaced while the driver stays. That the driver was replaced shows in
    /// [`Inventory::is_of_same_driver`](crate::inventory::Inventory::is_of_same_driver).
    pub fn is_unloaded(&self) -> bool {
        matches!(self, Self::NotLoaded { .. })
    }

    /// Whether it says the same as `other`, whichever call found it out.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::NotLoaded { library: a, .. }, Self::NotLoaded { library: b, .. })
            | (Self::VersionMismatch { library: a, .. }, Self::VersionMismatch { library: b, .. }) => a == b,
            _ => self == other,
        }
    }

    /// Sorts an error that concerns the driver as a whole.
    pub(super) fn from_call(library: PathBuf, call: CallError) -> Self {
        match call.failure {
            Failure::Code(sys::nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED) => {
                Self::NotLoaded { library, call }
            }
            Failure::Code(sys::nvmlReturn_enum_NVML_ERROR_LIB_RM_VERSION_MISMATCH) => {
                Self::VersionMismatch { library, call }
            }
            _ => Self::Failed { library, call },
        }
    }
}

/// One call of NVML that failed, shown as
/// `nvmlDeviceGetUUID: GPU is lost (NVML_ERROR_GPU_IS_LOST)`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{call}: {failure}")]
pub struct CallError {
    call: &'static str,
    failure: Failure,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Failure {
    /// NVML's own return code.
    Code(sys::nvmlReturn_t),
    /// This driver's library has no such function.
    NoSuchFunction,
    /// Nobody waits for the answer any more.
    GivenUp,
    /// Not NVML's, e.g. a name that is not UTF-8.
    Other(String),
}

impl CallError {
    /// A code that NVML returned.
    pub(super) fn from_code(call: &'static str, code: sys::nvmlReturn_t) -> Self {
        Self { call, failure: Failure::Code(code) }
    }

    /// The library lacks the function.
    pub(super) fn missing(call: &'static str) -> Self {
        Self { call, failure: Failure::NoSuchFunction }
    }

    /// The call was not made, since nobody waits for its answer any more.
    pub(super) fn given_up(call: &'static str) -> Self {
        Self { call, failure: Failure::GivenUp }
    }

    /// An error of nvml-wrapper's, which wraps codes, missing symbols and its own conversions.
    pub(super) fn from_wrapper(call: &'static str, error: NvmlError) -> Self {
        let failure = match error {
            NvmlError::FailedToLoadSymbol(_) => Failure::NoSuchFunction,
            NvmlError::Utf8Error(_)
            | NvmlError::NulError(_)
            | NvmlError::LibloadingError(_)
            | NvmlError::StringTooLong { .. }
            | NvmlError::IncorrectBits(_)
            | NvmlError::SetReleaseFailed
            | NvmlError::GetPciInfoFailed
            | NvmlError::PciInfoToCFailed => Failure::Other(error.to_string()),
            error => Failure::Code(error.into()),
        };
        Self { call, failure }
    }

    /// Why the library that was to be opened is none, or not NVML.
    pub(super) fn is_no_nvml(&self) -> Option<String> {
        match &self.failure {
            Failure::NoSuchFunction => Some(format!("it is not NVML: it has no {}", self.call)),
            Failure::Other(words) => Some(words.clone()),
            Failure::Code(_) | Failure::GivenUp => None,
        }
    }

    /// The answer's name in nvml.h without `NVML_ERROR_`, or `OTHER`.
    pub(super) fn code(&self) -> &'static str {
        match &self.failure {
            Failure::Code(code) => {
                NAMES.iter().find(|(known, ..)| known == code).map_or("OTHER", |(_, name, _)| name)
            }
            Failure::NoSuchFunction => "FUNCTION_NOT_FOUND",
            Failure::GivenUp | Failure::Other(_) => "OTHER",
        }
    }

    /// The driver as a whole is gone, or nobody wants to know, so asking the next GPU is useless.
    pub(super) fn driver_is_gone(&self) -> bool {
        self.failure == Failure::GivenUp
            || self.is(&[
                sys::nvmlReturn_enum_NVML_ERROR_UNINITIALIZED,
                sys::nvmlReturn_enum_NVML_ERROR_DRIVER_NOT_LOADED,
                sys::nvmlReturn_enum_NVML_ERROR_LIB_RM_VERSION_MISMATCH,
            ])
    }

    /// Nothing happened in the time that was given to wait for it.
    pub(super) fn is_timeout(&self) -> bool {
        self.is(&[sys::nvmlReturn_enum_NVML_ERROR_TIMEOUT])
    }

    /// Something went wrong inside of the driver.
    pub(super) fn is_unknown(&self) -> bool {
        self.is(&[sys::nvmlReturn_enum_NVML_ERROR_UNKNOWN])
    }

    /// This process lacks the right to ask.
    pub(super) fn is_no_permission(&self) -> bool {
        self.is(&[sys::nvmlReturn_enum_NVML_ERROR_NO_PERMISSION])
    }

    /// Nothing that this GPU says or holds can be used, so asking on is useless.
    pub(super) fn gpu_is_gone(&self) -> bool {
        self.is(&[
            sys::nvmlReturn_enum_NVML_ERROR_GPU_IS_LOST,
            sys::nvmlReturn_enum_NVML_ERROR_RESET_REQUIRED,
        ])
    }

    /// What it means for the GPU or MIG device that was asked about.
    pub(super) fn trouble(&self) -> Trouble {
        let kind = if self.gpu_is_gone() { TroubleKind::Lost } else { TroubleKind::Unreadable };
        Trouble { kind, text: self.to_string() }
    }

    /// The driver, being old or this process having no privileges, does not answer this question: an
    /// expected silence, not a fault.
    pub(super) fn is_refusal(&self) -> bool {
        self.is_not_supported() || self.is_no_permission()
    }

    /// The driver or the GPU has no answer to this question, whoever asks.
    pub(super) fn is_not_supported(&self) -> bool {
        self.failure == Failure::NoSuchFunction
            || self.is(&[
                sys::nvmlReturn_enum_NVML_ERROR_NOT_SUPPORTED,
                sys::nvmlReturn_enum_NVML_ERROR_FUNCTION_NOT_FOUND,
            ])
    }

    /// No MIG device has this index: the hole of a device that was destroyed, or one past the last.
    pub(super) fn is_hole(&self) -> bool {
        self.is_not_found() || self.is_invalid_argument()
    }

    /// Whether the driver does not know what was asked for, so that asking again is useless.
    pub(super) fn is_about_the_argument(&self) -> bool {
        self.is_invalid_argument()
            || self.is_not_found()
            || self.is(&[sys::nvmlReturn_enum_NVML_ERROR_ARGUMENT_VERSION_MISMATCH])
    }

    /// Whether the argument was past the last known one.
    pub(super) fn is_invalid_argument(&self) -> bool {
        self.is(&[sys::nvmlReturn_enum_NVML_ERROR_INVALID_ARGUMENT])
    }

    fn is_not_found(&self) -> bool {
        self.is(&[sys::nvmlReturn_enum_NVML_ERROR_NOT_FOUND])
    }

    fn is(&self, codes: &[sys::nvmlReturn_t]) -> bool {
        matches!(self.failure, Failure::Code(code) if codes.contains(&code))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Code(code) => match NAMES.iter().find(|(known, ..)| known == code) {
                Some((_, name, words)) => write!(f, "{words} (NVML_ERROR_{name})"),
                None => write!(f, "NVML error {code}"),
            },
            Self::NoSuchFunction => f.write_str("this driver's library has no such function"),
            Self::GivenUp => f.write_str("given up"),
            Self::Other(words) => f.write_str(words),
        }
    }
}

/// `nvmlReturn_t` by number, with nvml.h's name and a short sentence. nvml-wrapper has no variants for 23
/// to 30.
const NAMES: &[(sys::nvmlReturn_t, &str, &str)] = &[
    (1, "UNINITIALIZED", "NVML is not initialised"),
    (2, "INVALID_ARGUMENT", "invalid argument"),
    (3, "NOT_SUPPORTED", "not supported by this GPU"),
    (4, "NO_PERMISSION", "no permission"),
    (5, "ALREADY_INITIALIZED", "NVML is already initialised"),
    (6, "NOT_FOUND", "not found"),
    (7, "INSUFFICIENT_SIZE", "the buffer is too small"),
    (8, "INSUFFICIENT_POWER", "the GPU's power cables are not attached properly"),
    (9, "DRIVER_NOT_LOADED", "the kernel driver is not loaded"),
    (10, "TIMEOUT", "timed out"),
    (11, "IRQ_ISSUE", "the GPU's interrupts do not work"),
    (12, "LIBRARY_NOT_FOUND", "a library of the driver's cannot be loaded"),
    (13, "FUNCTION_NOT_FOUND", "the driver does not know the function"),
    (14, "CORRUPTED_INFOROM", "the GPU's infoROM is corrupted"),
    (15, "GPU_IS_LOST", "GPU is lost"),
    (16, "RESET_REQUIRED", "the GPU needs a reset"),
    (17, "OPERATING_SYSTEM", "blocked by the operating system"),
    (18, "LIB_RM_VERSION_MISMATCH", "library and kernel driver are of different versions"),
    (19, "IN_USE", "in use"),
    (20, "MEMORY", "not enough memory"),
    (21, "NO_DATA", "no data"),
    (22, "VGPU_ECC_NOT_SUPPORTED", "not supported while ECC is on"),
    (23, "INSUFFICIENT_RESOURCES", "not enough resources"),
    (24, "FREQ_NOT_SUPPORTED", "frequency not supported"),
    (25, "ARGUMENT_VERSION_MISMATCH", "the driver does not know this version of the argument"),
    (26, "DEPRECATED", "no longer supported by the driver"),
    (27, "NOT_READY", "not ready"),
    (28, "GPU_NOT_FOUND", "no GPU found"),
    (29, "INVALID_STATE", "invalid state"),
    (30, "RESET_TYPE_NOT_SUPPORTED", "this kind of reset is not supported"),
    (999, "UNKNOWN", "an internal error of the driver's"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_call_is_named_with_nvmls_own_word() {
        let error = CallError::from_wrapper("nvmlDeviceGetUUID", NvmlError::GpuLost);
        assert_eq!(error.to_string(), "nvmlDeviceGetUUID: GPU is lost (NVML_ERROR_GPU_IS_LOST)");
        assert!(error.gpu_is_gone());
    }

    #[test]
    fn codes_that_the_wrapper_does_not_know_keep_their_meaning() {
        let error = CallError::from_wrapper("nvmlX", NvmlError::UnexpectedVariant(27));
        assert_eq!(error.to_string(), "nvmlX: not ready (NVML_ERROR_NOT_READY)");
        let error = CallError::from_code("nvmlX", 77);
        assert_eq!(error.to_string(), "nvmlX: NVML error 77");
    }

    #[test]
    fn a_missing_library_lists_every_place() {
        let error = DriverError::NotFound {
            library: "libnvidia-ml.so.1",
            tried: vec!["/a/lib".to_owned(), "/a/lib64".to_owned()],
            loader: "no such file".to_owned(),
        };
        let text = error.to_string();
        assert!(
            text.starts_with("no NVIDIA driver found: libnvidia-ml.so.1 is in none of /a/lib, /a/lib64 ")
        );
    }
}
