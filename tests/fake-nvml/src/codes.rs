//! NVML's return codes.

macro_rules! codes {
    ($($name:ident = $value:literal, $message:literal;)*) => {
        /// An NVML return code. `SUCCESS` is no error and so not among them.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(i32)]
        #[allow(non_camel_case_types, clippy::upper_case_acronyms, reason = "nvml.h's own names")]
        #[expect(missing_docs, reason = "nvml.h documents them; message() says it in words")]
        pub enum Code { $($name = $value,)* }

        impl Code {
            /// All codes, in the order of their numbers.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name as in nvml.h, without `NVML_ERROR_`.
            pub fn name(self) -> &'static str {
                match self { $(Self::$name => stringify!($name),)* }
            }

            /// What `nvmlErrorString` says, in C's form.
            pub(crate) fn message(self) -> &'static std::ffi::CStr {
                match self { $(Self::$name => $message,)* }
            }
        }
    };
}

codes! {
    UNINITIALIZED = 1, c"Uninitialized";
    INVALID_ARGUMENT = 2, c"Invalid Argument";
    NOT_SUPPORTED = 3, c"Not Supported";
    NO_PERMISSION = 4, c"Insufficient Permissions";
    ALREADY_INITIALIZED = 5, c"Already Initialized";
    NOT_FOUND = 6, c"Not Found";
    INSUFFICIENT_SIZE = 7, c"Insufficient Size";
    INSUFFICIENT_POWER = 8, c"Insufficient External Power";
    DRIVER_NOT_LOADED = 9, c"Driver Not Loaded";
    TIMEOUT = 10, c"Timeout";
    IRQ_ISSUE = 11, c"Interrupt Request Issue";
    LIBRARY_NOT_FOUND = 12, c"NVML Shared Library Not Found";
    FUNCTION_NOT_FOUND = 13, c"Function Not Found";
    CORRUPTED_INFOROM = 14, c"Corrupted infoROM";
    GPU_IS_LOST = 15, c"GPU is lost";
    RESET_REQUIRED = 16, c"GPU requires reset";
    OPERATING_SYSTEM = 17, c"The operating system has blocked the request";
    LIB_RM_VERSION_MISMATCH = 18, c"RM has detected an NVML/RM version mismatch";
    IN_USE = 19, c"In use by another client";
    MEMORY = 20, c"Insufficient Memory";
    NO_DATA = 21, c"No data";
    VGPU_ECC_NOT_SUPPORTED = 22, c"The requested vgpu operation is not available on target device, because ECC is enabled";
    INSUFFICIENT_RESOURCES = 23, c"Insufficient Resources";
    FREQ_NOT_SUPPORTED = 24, c"Frequency Not Supported";
    ARGUMENT_VERSION_MISMATCH = 25, c"Argument Version Mismatch";
    DEPRECATED = 26, c"Deprecated";
    NOT_READY = 27, c"System Not Ready";
    GPU_NOT_FOUND = 28, c"GPU Not Found";
    INVALID_STATE = 29, c"Invalid State";
    RESET_TYPE_NOT_SUPPORTED = 30, c"Reset Type Not Supported";
    UNKNOWN = 999, c"Unknown Error";
}

impl Code {
    /// The code of that name, with or without `NVML_ERROR_`.
    pub fn from_name(name: &str) -> Option<Self> {
        let name = name.strip_prefix("NVML_ERROR_").unwrap_or(name);
        Self::ALL.iter().copied().find(|code| code.name() == name)
    }

    /// The code of that number.
    pub fn from_number(number: i32) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| *code as i32 == number)
    }
}
