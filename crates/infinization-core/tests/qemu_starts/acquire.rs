//! What a plan would acquire on the host before it starts QEMU.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use infinization_core::config::VmConfig;
use infinization_core::qemu::{
    Accelerator, Acquired, ChannelListeners, DisplayEndpoint, FirmwareFiles, SerialConsole,
};
use infinization_core::types::HostPath;

use crate::configs::host_path;

/// What is acquired beyond what the configuration asks for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Extra {
    pub(crate) accelerator: Option<Accelerator>,
    pub(crate) host_nodes: Vec<u32>,
    pub(crate) vhost: bool,
}

pub(crate) fn acquire(
    dir: &Path,
    config: &VmConfig,
    extra: &Extra,
    handed: &mut Vec<OwnedFd>,
) -> Acquired {
    let mut listen = |path: &HostPath| {
        let listener = UnixListener::bind(path.as_path()).unwrap();
        hand_over(listener.into(), handed)
    };
    let qmp = listen(&config.paths.qmp_socket);
    let channels = ChannelListeners {
        guest_agent: config.channels.guest_agent.as_ref().map(&mut listen),
        infini_service: config.channels.infini_service.as_ref().map(&mut listen),
        serial_console: config
            .channels
            .serial_console
            .as_ref()
            .map(|path| SerialConsole {
                listener: listen(path),
                log: host_path(dir, "console.log"),
            }),
    };
    let queues = config.network.queues;
    Acquired {
        qmp,
        channels,
        tap: (0..queues)
            .map(|_| hand_over(open_tap(queues > 1), handed))
            .collect(),
        ..planned(config, extra)
    }
}

/// What needs no descriptor.
pub(crate) fn planned(config: &VmConfig, extra: &Extra) -> Acquired {
    Acquired {
        accelerator: extra.accelerator.unwrap_or(Accelerator::Tcg),
        display: DisplayEndpoint {
            address: config.display.address.clone(),
            port: config.display.port,
        },
        qmp: -1,
        tap: Vec::new(),
        vhost: Vec::new(),
        channels: ChannelListeners::default(),
        firmware: config.firmware.as_ref().map(|firmware| FirmwareFiles {
            code: firmware.code.clone(),
            vars: firmware.vars.clone(),
        }),
        tpm_socket: config.tpm_socket.clone(),
        encrypted_disks: Vec::new(),
        host_nodes: extra.host_nodes.clone(),
    }
}

/// Lets the next child inherit `fd` under its number here.
fn hand_over(fd: OwnedFd, handed: &mut Vec<OwnedFd>) -> RawFd {
    rustix::io::fcntl_setfd(&fd, rustix::io::FdFlags::empty()).unwrap();
    let number = fd.as_raw_fd();
    handed.push(fd);
    number
}

/// A queue of the private network's one TAP.
fn open_tap(multi_queue: bool) -> OwnedFd {
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/net/tun")
        .unwrap();
    let queue_flag = if multi_queue {
        libc::IFF_MULTI_QUEUE
    } else {
        0
    };
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | queue_flag;
    // SAFETY: `ifreq` is plain old data, for which all zero is a value.
    #[expect(unsafe_code, reason = "TUNSETIFF has no safe binding")]
    let outcome = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"tap-test") {
            *to = libc::c_char::try_from(*from).unwrap();
        }
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap();
        libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw const request)
    };
    assert_eq!(outcome, 0, "{}", std::io::Error::last_os_error());
    file.into()
}

pub(crate) fn make_files(dir: &Path, config: &VmConfig) {
    for iso in ["installer.iso", "drivers.iso"] {
        fs::write(dir.join(iso), vec![0; 1 << 20]).unwrap();
    }
    for disk in &config.disks {
        let mut create = Command::new("qemu-img");
        create.args(["create", "-q", "-f", "qcow2"]);
        if let Some(golden) = &disk.backing_file {
            make_image(
                Command::new("qemu-img").args(["create", "-q", "-f", "qcow2"]),
                golden,
            );
            create.args(["-F", "qcow2", "-b", golden.as_str()]);
        }
        // Raw disks too: a guest may have written a qcow2 header into its own disk.
        make_image(&mut create, disk.path().unwrap());
    }
    if let Some(firmware) = &config.firmware {
        let templates = firmware.vars_templates().unwrap();
        let template = templates.iter().find(|path| path.as_path().exists());
        fs::copy(template.unwrap(), &firmware.vars).unwrap();
    }
}

fn make_image(create: &mut Command, path: &HostPath) {
    assert!(
        create
            .args([path.as_str(), "64M"])
            .status()
            .unwrap()
            .success()
    );
    fs::set_permissions(path, fs::Permissions::from_mode(0o666)).unwrap();
}
