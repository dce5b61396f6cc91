use serde::{Deserialize, Serialize};

use crate::types::HostPath;

/// UEFI firmware: the code, shared and read-only, and this VM's own variables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FirmwareConfig {
    /// `OVMF_CODE*.fd`.
    pub code: HostPath,
    /// `{diskDir}/uefi-vars-{vmId}.fd`, copied once from a template
    /// ([`FirmwareConfig::vars_templates`]).
    pub vars: HostPath,
}
