//! The Xids that NVIDIA documents for GPUs since Ampere, the first with MIG.
//!
//! Source of every row: NVIDIA's "Xid Catalog" (docs.nvidia.com/deploy/xid-errors, "Analyzing Xid Errors with the Xid
//! Catalog", table 1), as it was in 2026: the number, the description as the name, and the immediate action of the
//! column "Resolution Bucket". Left out is what the catalog calls unused, so that such an Xid is an unknown one.
//!
//! Where the catalog gives no one plain answer:
//! - 45, 62 and 168 have the first part of their description, which goes on with remarks; 171 and 172 have their
//!   mnemonic, since their description only says that they come with 48.
//! - 162 to 172 have no action in the catalog: it is [`Action::Unstated`].
//! - The action of an `NVLink` 5 Xid (144 to 150) depends on details that NVML's event does not carry.
//!
//! The catalog has no column for a [`Class`]: it is what the action means for the devices, and our reading.

use std::fmt;

/// One row of the catalog.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Xid {
    /// The number.
    pub number: u64,
    /// NVIDIA's description.
    pub name: &'static str,
    /// What NVIDIA says is to be done at once.
    pub action: Action,
}

/// NVIDIA's words for what is to be done at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// `IGNORE`
    Ignore,
    /// `RESTART_APP`
    RestartApp,
    /// `RESET_GPU`
    ResetGpu,
    /// `RESTART_VM`
    RestartVm,
    /// `RESTART_BM`: restart the bare metal, that is the node.
    RestartBm,
    /// `WORKFLOW_XID_45`: look at the Xids before it.
    WorkflowXid45,
    /// `WORKFLOW_XID_48`: reset the GPU; where 63 or 64 comes with it, end its work first.
    WorkflowXid48,
    /// `WORKFLOW_NVLINK_ERR`
    WorkflowNvlink,
    /// `WORKFLOW_NVLINK5_ERR`
    WorkflowNvlink5,
    /// `XID_154`: what the GPU's recovery action says.
    Xid154,
    /// `CHECK_MECHANICALS`
    CheckMechanicals,
    /// `CHECK_UVM`
    CheckUvm,
    /// `UPDATE_SWFW`: update software or firmware.
    UpdateSwFw,
    /// `CONTACT_SUPPORT`
    ContactSupport,
    /// The catalog does not say.
    Unstated,
}

/// What an Xid means for the GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Nothing has to be done.
    Informational,
    /// The program that ran has to be started again; the GPU is well.
    Application,
    /// The GPU, or what it is part of, needs a reset, a restart or a repair of its links.
    Critical,
    /// Somebody has to look, at the machine, its software or its firmware.
    Inspection,
    /// The catalog does not say.
    Unstated,
}

impl Xid {
    /// What it means for the GPU, going by the action.
    pub fn class(&self) -> Class {
        match self.action {
            Action::Ignore | Action::Xid154 => Class::Informational,
            // 45 tells of a clean-up after an application that ended, for whatever reason.
            Action::RestartApp | Action::WorkflowXid45 => Class::Application,
            Action::ResetGpu
            | Action::RestartVm
            | Action::RestartBm
            | Action::WorkflowXid48
            | Action::WorkflowNvlink
            | Action::WorkflowNvlink5 => Class::Critical,
            Action::CheckMechanicals | Action::CheckUvm | Action::UpdateSwFw | Action::ContactSupport => {
                Class::Inspection
            }
            Action::Unstated => Class::Unstated,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ignore => "IGNORE",
            Self::RestartApp => "RESTART_APP",
            Self::ResetGpu => "RESET_GPU",
            Self::RestartVm => "RESTART_VM",
            Self::RestartBm => "RESTART_BM",
            Self::WorkflowXid45 => "WORKFLOW_XID_45",
            Self::WorkflowXid48 => "WORKFLOW_XID_48",
            Self::WorkflowNvlink => "WORKFLOW_NVLINK_ERR",
            Self::WorkflowNvlink5 => "WORKFLOW_NVLINK5_ERR",
            Self::Xid154 => "XID_154",
            Self::CheckMechanicals => "CHECK_MECHANICALS",
            Self::CheckUvm => "CHECK_UVM",
            Self::UpdateSwFw => "UPDATE_SWFW",
            Self::ContactSupport => "CONTACT_SUPPORT",
            Self::Unstated => "unstated",
        })
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Informational => "informational",
            Self::Application => "application",
            Self::Critical => "critical",
            Self::Inspection => "inspection",
            Self::Unstated => "unstated",
        })
    }
}

/// The catalog's row for this Xid.
pub fn find(number: u64) -> Option<&'static Xid> {
    let row = CATALOG.binary_search_by_key(&number, |xid| xid.number).ok()?;
    CATALOG.get(row)
}

const fn xid(number: u64, name: &'static str, action: Action) -> Xid {
    Xid { number, name, action }
}

/// The rows, ordered by number.
pub const CATALOG: &[Xid] = &[
    xid(8, "GPU stopped processing", Action::RestartApp),
    xid(11, "Invalid or corrupted push buffer stream", Action::RestartApp),
    xid(13, "Graphics Engine Exception", Action::RestartApp),
    xid(25, "Invalid or illegal push buffer stream", Action::RestartApp),
    xid(31, "GPU memory page fault", Action::RestartApp),
    xid(32, "Invalid or corrupted push buffer stream", Action::RestartApp),
    xid(37, "Driver firmware error", Action::Ignore),
    xid(38, "Driver firmware error", Action::Ignore),
    xid(39, "Copy Engine Exception", Action::RestartApp),
    xid(40, "Copy Engine Exception", Action::RestartApp),
    xid(41, "Copy Engine Exception", Action::RestartApp),
    xid(43, "GPU stopped processing", Action::Ignore),
    xid(44, "Graphics Engine fault during context switch", Action::Ignore),
    xid(45, "Preemptive cleanup, due to previous errors", Action::WorkflowXid45),
    xid(46, "GPU stopped processing", Action::ResetGpu),
    xid(48, "Double Bit ECC Error", Action::WorkflowXid48),
    xid(54, "Auxiliary power is not connected to the GPU board", Action::CheckMechanicals),
    xid(60, "Video processor exception", Action::RestartApp),
    xid(62, "Internal micro-controller halt", Action::ResetGpu),
    xid(63, "GPU memory remapping event", Action::Ignore),
    xid(64, "GPU memory remapping failure", Action::ResetGpu),
    xid(66, "Illegal access by driver", Action::Ignore),
    xid(67, "Illegal access by driver", Action::Ignore),
    xid(68, "NVDEC0 Exception", Action::RestartApp),
    xid(69, "Graphics Engine class error", Action::RestartApp),
    xid(70, "CE3: Unknown Error", Action::RestartApp),
    xid(71, "CE4: Unknown Error", Action::RestartApp),
    xid(72, "CE5: Unknown Error", Action::RestartApp),
    xid(74, "NVLINK Error", Action::WorkflowNvlink),
    xid(75, "CE6: Unknown Error", Action::RestartApp),
    xid(76, "CE7: Unknown Error", Action::RestartApp),
    xid(77, "CE8: Unknown Error", Action::RestartApp),
    xid(78, "vGPU Start Error", Action::UpdateSwFw),
    xid(79, "GPU has fallen off the bus", Action::RestartBm),
    xid(80, "Corrupted data sent to GPU", Action::RestartApp),
    xid(82, "NVJPG0 Error", Action::RestartApp),
    xid(83, "NVDEC1 Error", Action::RestartApp),
    xid(84, "NVDEC2 Error", Action::RestartApp),
    xid(85, "CE9: Unknown Error", Action::RestartApp),
    xid(86, "OFA Exception", Action::RestartApp),
    xid(88, "NVDEC3 Error", Action::RestartApp),
    xid(89, "NVDEC4 Error", Action::RestartApp),
    xid(92, "High single-bit ECC error rate", Action::Ignore),
    xid(93, "Non-fatal violation of provisioned InfoROM wear limit", Action::Ignore),
    xid(94, "Contained memory error", Action::RestartApp),
    xid(95, "Uncontained memory error", Action::ResetGpu),
    xid(96, "NVDEC5 Error", Action::RestartApp),
    xid(97, "NVDEC6 Error", Action::RestartApp),
    xid(98, "NVDEC7 Error", Action::RestartApp),
    xid(99, "NVJPG1 Error", Action::RestartApp),
    xid(100, "NVJPG2 Error", Action::RestartApp),
    xid(101, "NVJPG3 Error", Action::RestartApp),
    xid(102, "NVJPG4 Error", Action::RestartApp),
    xid(103, "NVJPG5 Error", Action::RestartApp),
    xid(104, "NVJPG6 Error", Action::RestartApp),
    xid(105, "NVJPG7 Error", Action::RestartApp),
    xid(106, "SMBPBI Test Message", Action::Ignore),
    xid(107, "SMBPBI Test Message Silent", Action::Ignore),
    xid(109, "Context Switch Timeout Error", Action::ResetGpu),
    xid(110, "Security Fault Error", Action::ResetGpu),
    xid(119, "GSP RPC Timeout", Action::ResetGpu),
    xid(120, "GSP Error", Action::ResetGpu),
    xid(121, "C2C Error", Action::Ignore),
    xid(126, "CE10: Unknown Error", Action::RestartApp),
    xid(127, "CE11: Unknown Error", Action::RestartApp),
    xid(128, "CE12: Unknown Error", Action::RestartApp),
    xid(129, "CE13: Unknown Error", Action::RestartApp),
    xid(130, "CE14: Unknown Error", Action::RestartApp),
    xid(131, "CE15: Unknown Error", Action::RestartApp),
    xid(132, "CE16: Unknown Error", Action::RestartApp),
    xid(133, "CE17: Unknown Error", Action::RestartApp),
    xid(134, "CE18: Unknown Error", Action::RestartApp),
    xid(135, "CE19: Unknown Error", Action::RestartApp),
    xid(136, "Link Training Failed", Action::ResetGpu),
    xid(137, "NVLink Privilege Error", Action::Ignore),
    xid(139, "OFA1 Error", Action::RestartApp),
    xid(140, "ECC Unrecovered Error", Action::ResetGpu),
    xid(141, "CUDA Fast Path Error", Action::Ignore),
    xid(142, "NVENC3 Error", Action::ContactSupport),
    xid(143, "GPU Initialization Error", Action::ResetGpu),
    xid(144, "NVLINK: SAW Error", Action::WorkflowNvlink5),
    xid(145, "NVLINK: RLW Error", Action::WorkflowNvlink5),
    xid(146, "NVLINK: TLW Error", Action::WorkflowNvlink5),
    xid(147, "NVLINK: TREX Error", Action::WorkflowNvlink5),
    xid(148, "NVLINK: NVLPW_CTRL Error", Action::WorkflowNvlink5),
    xid(149, "NVLINK: NETIR Error", Action::WorkflowNvlink5),
    xid(150, "NVLINK: MSE Error", Action::WorkflowNvlink5),
    xid(151, "Key rotation Error", Action::RestartVm),
    xid(152, "DLA SMMU Error", Action::Ignore),
    xid(153, "DLA timeout Error", Action::Ignore),
    xid(154, "GPU Recovery Action Changed", Action::Xid154),
    xid(155, "NVLINK: SW Defined Error", Action::ResetGpu),
    xid(156, "Resource Retirement Event", Action::ResetGpu),
    xid(157, "Resource Retirement Failure", Action::Ignore),
    xid(158, "GPU Fatal Timeout", Action::ResetGpu),
    xid(159, "CHI Non-Data Error", Action::CheckUvm),
    xid(160, "Channel Retirement Event", Action::Ignore),
    xid(161, "Channel Retirement Failure", Action::Ignore),
    xid(162, "Power Smoothing HW Circuitry capability reengaged", Action::Unstated),
    xid(163, "Power Smoothing HW Circuitry capability disengaged", Action::Unstated),
    xid(164, "Power Smoothing HW Circuitry low lifetime reached", Action::Unstated),
    xid(165, "Power Smoothing HW Circuitry lifetime exhausted", Action::Unstated),
    xid(
        166,
        "CC traffic seen prior to link properly being configured for encrypted traffic",
        Action::Unstated,
    ),
    xid(167, "PCIE_FATAL_TIMEOUT", Action::Unstated),
    xid(168, "Errors found in WPR", Action::Unstated),
    xid(169, "Internal micro-controller halt", Action::Unstated),
    xid(170, "Interrupt seen in CC mode", Action::Unstated),
    xid(171, "UNCORRECTABLE_DRAM_ERROR", Action::Unstated),
    xid(172, "UNCORRECTABLE_SRAM_ERROR", Action::Unstated),
];
