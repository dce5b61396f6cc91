//! Which process is which machine's, where nothing but a pid was recorded.

use std::path::{Path, PathBuf};

use crate::db::MachineConfiguration;
use crate::host::process::{Identity, QemuMarks, identify};

/// The pid of a row, if it is one.
pub(super) fn pid_of(configuration: Option<&MachineConfiguration>) -> Option<i32> {
    let pid = i32::try_from(configuration?.qemu_pid?).ok();
    pid.filter(|pid| *pid > 0)
}

/// Where a machine's pidfile is.
pub(super) fn pid_file(directory: &Path, internal_name: &str) -> PathBuf {
    directory.join(format!("{internal_name}.pid"))
}

/// Whether `pid` is the QEMU of this machine: by its name, its pidfile or its monitor's socket.
pub(super) async fn identity(
    pid: i32,
    internal_name: &str,
    pid_file: Option<&Path>,
    configuration: Option<&MachineConfiguration>,
) -> Identity {
    let qmp_socket = configuration.and_then(|it| it.qmp_socket_path.clone());
    let given = |text: String| Some(text).filter(|text| !text.is_empty());
    let marks = QemuMarks {
        name: given(internal_name.to_owned()),
        pid_file: pid_file.map(|path| path.display().to_string()),
        qmp_socket: qmp_socket.and_then(given),
    };
    identify(pid, marks).await
}
