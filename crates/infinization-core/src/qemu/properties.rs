//! What holds for every configuration: the argv says what the configuration says, and no text of a
//! caller can make it say more.

use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Value, json};

use super::reader::{Switch, all, device, node, one, parse_argv, shape};
use super::{
    Accelerator, Acquired, ChannelListeners, DisplayEndpoint, FirmwareFiles, QemuCommand,
    SerialConsole,
};
use crate::config::{
    AcceleratorChoice, BindAddress, Context, DiskBus, DiskConfig, DisplayProtocol, MachineType,
    NetworkModel, PathRules, VmConfig,
};
use crate::types::{ByteSize, HostPath};

fn path(text: &str) -> HostPath {
    HostPath::parse(text).unwrap()
}

fn context() -> Context {
    Context {
        disk_dir: path("/srv/disks"),
        socket_dir: path("/run/vms"),
        pid_dir: path("/run/vms"),
        path_rules: PathRules {
            allowed: None,
            rom_dir: path("/srv/roms"),
        },
        accelerator: AcceleratorChoice::Auto,
        run_as_user: None,
        host_cpus: 64,
        host_memory: ByteSize::mib(64 * 1024),
        hugepage_size: ByteSize::mib(2),
    }
}

fn base() -> Value {
    json!({
        "vmId": "vm-1", "name": "one", "internalName": "vm-1", "os": "ubuntu", "cpuCores": 2,
        "ramGB": 2, "disks": [{ "sizeGB": 1 }], "bridge": "br0", "displayType": "spice",
        "displayPort": 5900,
    })
}

/// Everything a configuration asks for, acquired.
fn acquired(config: &VmConfig, vhost: bool) -> Acquired {
    let channels = &config.channels;
    let queues = i32::from(config.network.queues);
    Acquired {
        accelerator: Accelerator::Kvm,
        display: DisplayEndpoint {
            address: config.display.address.clone(),
            port: config.display.port,
        },
        qmp: 3,
        tap: (10..10 + queues).collect(),
        vhost: (20..20 + queues).filter(|_| vhost).collect(),
        channels: ChannelListeners {
            guest_agent: channels.guest_agent.as_ref().map(|_| 4),
            infini_service: channels.infini_service.as_ref().map(|_| 5),
            serial_console: channels
                .serial_console
                .as_ref()
                .map(|socket| SerialConsole {
                    listener: 6,
                    log: path(&format!("{socket}.log")),
                }),
        },
        firmware: config.firmware.as_ref().map(|firmware| FirmwareFiles {
            code: firmware.code.clone(),
            vars: firmware.vars.clone(),
        }),
        tpm_socket: config.tpm_socket.clone(),
        encrypted_disks: Vec::new(),
        host_nodes: Vec::new(),
    }
}

fn switches(config: &VmConfig) -> Vec<Switch> {
    parse_argv(&QemuCommand::new(config, &acquired(config, false)).args)
}

prop_compose! {
    fn any_disk()(
        bus in select(DiskBus::ALL),
        cache in select(vec!["none", "writeback", "writethrough", "directsync", "unsafe"]),
        format in select(vec!["qcow2", "raw"]),
        discard in any::<bool>(),
    ) -> Value {
        json!({ "sizeGB": 5, "bus": bus.as_str(), "cache": cache, "format": format, "discard": discard })
    }
}

/// A path with any character a host path may have.
fn any_path() -> impl Strategy<Value = Option<String>> {
    proptest::option::of("/srv/f[a-zA-Z0-9 =;:'\"{}\\\\$%*ä.-]{0,30}")
}

prop_compose! {
    fn any_board()(
        machine in select(MachineType::ALL),
        os in select(vec!["ubuntu", "windows11", "freedos", "haiku"]),
        cores in 1..=255_u32,
        quarters in 2..256_u32,
        hugepages in any::<bool>(),
        balloon in any::<bool>(),
        uuid in proptest::option::of("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"),
        uefi in any_path(),
        sandbox in any::<bool>(),
    ) -> Value {
        json!({
            "machineType": machine.as_str(), "os": os, "cpuCores": cores, "uuid": uuid,
            "ramGB": f64::from(quarters) / 4.0, "hugepages": hugepages, "memoryBalloon": balloon,
            "uefiFirmware": uefi, "disableSandbox": !sandbox,
        })
    }
}

prop_compose! {
    fn any_devices()(
        disks in proptest::collection::vec(any_disk(), 1..=4),
        iso in any_path(),
        drivers in any_path(),
        model in select(NetworkModel::ALL),
        queues in 1..=4,
        tpm in any_path(),
        guest_agent in any_path(),
        console in any::<bool>(),
        gpu in proptest::option::of("[0-9a-f]{2}:[01][0-9a-f]\\.[0-7]"),
        sound in any::<bool>(),
        tablet in any::<bool>(),
    ) -> Value {
        json!({
            "disks": disks, "isoPath": iso, "virtioDriversIso": drivers,
            "networkModel": model.as_str(), "networkQueues": queues, "tpmSocketPath": tpm,
            "guestAgentSocketPath": guest_agent.map(|path| path + ".agent"), "serialConsole": console,
            "gpuPciAddress": gpu, "enableAudio": sound, "enableUsbTablet": tablet,
        })
    }
}

prop_compose! {
    fn any_display()(
        protocol in select(DisplayProtocol::ALL),
        port in 5900..=5999_u16,
        password in proptest::option::of("[a-zA-Z0-9]{1,8}"),
        address in select(vec!["127.0.0.1", "::1", "localhost", "0.0.0.0", "::", "192.0.2.1"]),
    ) -> Value {
        let loopback = BindAddress::parse(address).unwrap().is_loopback();
        let password = password.or_else(|| (!loopback).then(|| "secret".to_owned()));
        json!({
            "displayType": protocol.as_str(), "displayPort": port, "displayPassword": password,
            "displayAddr": address,
        })
    }
}

prop_compose! {
    fn any_config()(
        parts in (any_board(), any_devices(), any_display())
    ) -> VmConfig {
        let mut value = base();
        for part in [parts.0, parts.1, parts.2] {
            for (key, field) in part.as_object().unwrap() {
                value[key] = field.clone();
            }
        }
        // A name that looks like a Secure Boot build is one, and asks for q35.
        if value["uefiFirmware"].as_str().is_some_and(|code| code.contains(".ms.")) {
            value["uefiFirmware"] = Value::Null;
        }
        VmConfig::parse(&value, &context()).unwrap().config
    }
}

fn says_board(config: &VmConfig, argv: &[Switch]) {
    let machine = one(argv, "-machine");
    assert_eq!(machine["type"], config.machine.as_str());
    assert_eq!(one(argv, "-name")["guest"], config.internal_name.as_str());
    assert_eq!(one(argv, "-smp")["cpus"], config.cpu.cores.to_string());
    let mib = format!("{}M", config.memory.size.as_mib());
    assert_eq!(one(argv, "-m")["size"], mib);
    let uuid = config
        .uuid
        .as_ref()
        .map_or(Value::Null, |uuid| uuid.as_str().into());
    assert_eq!(one(argv, "-uuid")[""], uuid);
    assert_eq!(all(argv, "-sandbox").count(), usize::from(config.sandbox));
    assert_eq!(
        all(argv, "-object").count(),
        usize::from(config.memory.hugepages)
    );
    if config.memory.hugepages {
        let memory = one(argv, "-object");
        assert_eq!(memory["size"], config.memory.size.as_bytes());
        assert_eq!(machine["memory-backend"], memory["id"]);
    }
    if let Some(firmware) = &config.firmware {
        let code = node(argv, machine["pflash0"].as_str().unwrap());
        assert_eq!(code["file"]["filename"], firmware.code.as_str());
        assert_eq!(code["read-only"], true);
        let vars = node(argv, machine["pflash1"].as_str().unwrap());
        assert_eq!(vars["file"]["filename"], firmware.vars.as_str());
    }
}

fn says_disk(disk: &DiskConfig, index: usize, argv: &[Switch]) {
    let frontend = device(argv, &format!("disk{index}")).unwrap();
    let backend = node(argv, frontend["drive"].as_str().unwrap());
    assert_eq!(backend["driver"], disk.format.as_str());
    match disk.path() {
        Some(path) => assert_eq!(backend["file"]["filename"], path.as_str()),
        None => assert_eq!(backend["file"]["driver"], "nbd"),
    }
    assert_eq!(
        backend["discard"],
        if disk.discard { "unmap" } else { "ignore" }
    );
    assert_eq!(backend["cache"]["direct"], disk.cache.is_direct());
    assert_eq!(backend["cache"]["no-flush"], disk.cache.ignores_flushes());
    assert_eq!(
        frontend["write-cache"] == "on",
        disk.cache.has_write_cache()
    );
    let driver = match disk.bus {
        DiskBus::Virtio => "virtio-blk-pci",
        DiskBus::Scsi => "scsi-hd",
        DiskBus::Sata | DiskBus::Ide => "ide-hd",
    };
    assert_eq!(frontend["driver"], driver);
}

fn says_devices(config: &VmConfig, argv: &[Switch]) {
    for (index, disk) in config.disks.iter().enumerate() {
        says_disk(disk, index, argv);
    }
    for (id, iso) in [
        ("cdrom0", &config.installer_iso),
        ("cdrom1", &config.drivers_iso),
    ] {
        let cd = device(argv, id).map(|cd| node(argv, cd["drive"].as_str().unwrap()));
        let file = cd.map(|cd| cd["file"]["filename"].as_str().unwrap());
        assert_eq!(file, iso.as_ref().map(AsRef::as_ref));
        assert!(cd.is_none_or(|cd| cd["read-only"] == true));
    }
    let nic = device(argv, "net0").unwrap();
    assert_eq!(nic["driver"], config.network.model.as_str());
    assert_eq!(nic["mac"], config.network.mac.to_string());
    assert_eq!(nic.get("mq").is_some(), config.network.queues > 1);
    let gpu = device(argv, "gpu0").map(|gpu| gpu["host"].as_str().unwrap().to_owned());
    assert_eq!(gpu, config.gpu.as_ref().map(|gpu| gpu.address.to_string()));
    for (id, wanted) in [
        ("tpm0", config.tpm_socket.is_some()),
        ("guest-agent0", config.channels.guest_agent.is_some()),
        ("ttyS0", config.channels.serial_console.is_some()),
        ("balloon0", config.memory.balloon),
        ("tablet0", config.usb_tablet),
        ("sound0", config.audio),
    ] {
        assert_eq!(device(argv, id).is_some(), wanted, "{id}");
    }
}

fn says_display(config: &VmConfig, argv: &[Switch]) {
    let display = &config.display;
    match display.protocol {
        DisplayProtocol::Spice => {
            let spice = one(argv, "-spice");
            assert_eq!(spice["port"], display.port.to_string());
            assert_eq!(spice["addr"], display.address.to_string());
            let open = spice.get("disable-ticketing").is_some();
            assert_eq!(open, display.password.is_none());
        }
        DisplayProtocol::Vnc => {
            let vnc = one(argv, "-vnc");
            let (host, number) = vnc[""].as_str().unwrap().rsplit_once(':').unwrap();
            assert_eq!(host.trim_matches(['[', ']']), display.address.to_string());
            assert_eq!(number, (display.port - 5900).to_string());
            assert_eq!(vnc.get("password").is_some(), display.password.is_some());
        }
    }
}

/// No two devices share a place on a bus.
fn places_are_unique(argv: &[Switch]) {
    let mut places: Vec<String> = all(argv, "-device")
        .filter(|device| device.get("bus").is_some())
        .filter(|device| device["driver"] != "virtserialport")
        .map(|device| {
            let place = ["addr", "unit", "scsi-id"].map(|key| device[key].to_string());
            format!("{} {}", device["bus"], place.join(" "))
        })
        .collect();
    places.sort();
    let all_places = places.len();
    places.dedup();
    assert_eq!(places.len(), all_places, "{places:#?}");
}

proptest! {
    #[test]
    fn the_argv_says_what_the_configuration_says(config in any_config()) {
        let argv = switches(&config);
        says_board(&config, &argv);
        says_devices(&config, &argv);
        says_display(&config, &argv);
        places_are_unique(&argv);
    }

    #[test]
    fn equal_inputs_give_equal_bytes_and_no_secret(config in any_config(), vhost in any::<bool>()) {
        let acquired = acquired(&config, vhost);
        let command = QemuCommand::new(&config, &acquired);
        prop_assert_eq!(&command, &QemuCommand::new(&config.clone(), &acquired));
        let mut secretive = config.clone();
        if let Some(password) = &mut secretive.display.password {
            *password = crate::types::Secret::new("correct horse battery");
        }
        prop_assert_eq!(&command, &QemuCommand::new(&secretive, &acquired));
    }

    /// B2, B3, B12, B20, B31, B32, B35: whatever text stands in whatever field, it is refused or it
    /// changes values only, never which options there are.
    #[test]
    fn b2_b3_no_text_adds_an_option(
        (field, _) in select(BENIGN),
        text in hostile_text(),
    ) {
        let mut value = base();
        for (field, benign) in BENIGN {
            value[*field] = (*benign).into();
        }
        let plain = VmConfig::parse(&value, &context()).unwrap().config;
        value[field] = text.into();
        if let Ok(parsed) = VmConfig::parse(&value, &context()) {
            prop_assert_eq!(shape(&switches(&parsed.config)), shape(&switches(&plain)));
        }
    }
}

proptest! {
    /// The same for the parts of locations on the network.
    #[test]
    fn b2_b3_no_part_of_a_location_adds_an_option(
        (at, field) in select(PARTS),
        text in hostile_text(),
    ) {
        let mut value = base();
        value["disks"] = locations();
        let plain = VmConfig::parse(&value, &context()).unwrap().config;
        *value.pointer_mut(&format!("/disks/{at}/location/{field}")).unwrap() = text.into();
        if let Ok(parsed) = VmConfig::parse(&value, &context()) {
            prop_assert_eq!(shape(&switches(&parsed.config)), shape(&switches(&plain)));
        }
    }
}

fn locations() -> Value {
    json!([
        { "location": { "type": "nbd", "host": "h", "export": "e",
            "tls": { "credentials": "/c", "hostname": "n" } } },
        { "location": { "type": "nbd", "path": "/run/s" } },
        { "location": { "type": "rbd", "pool": "p", "image": "i", "namespace": "n", "user": "u",
            "conf": "/etc/ceph/c", "monitors": [{ "host": "m" }] } },
    ])
}

/// Every text in them.
const PARTS: &[(usize, &str)] = &[
    (0, "host"),
    (0, "export"),
    (0, "tls/credentials"),
    (0, "tls/hostname"),
    (1, "path"),
    (2, "pool"),
    (2, "image"),
    (2, "namespace"),
    (2, "user"),
    (2, "conf"),
    (2, "monitors/0/host"),
];

/// Fields whose text can reach the argv, each with a value that is fine.
const BENIGN: &[(&str, &str)] = &[
    ("internalName", "vm-1"),
    ("name", "one"),
    ("cpuModel", "Skylake-Client-v4"),
    ("macAddress", "52:54:00:00:00:01"),
    ("uuid", "3f2b8c1e-7a4d-4e55-9b0a-1c2d3e4f5a6b"),
    ("isoPath", "/srv/a.iso"),
    ("virtioDriversIso", "/srv/b.iso"),
    ("tpmSocketPath", "/run/tpm.sock"),
    ("guestAgentSocketPath", "/run/ga.sock"),
    ("uefiFirmware", "/srv/OVMF_CODE.fd"),
    ("gpuPciAddress", "0000:01:00.0"),
    ("gpuRomfile", "/srv/roms/a.rom"),
    ("displayAddr", "127.0.0.1"),
    ("displayPassword", "secret"),
];

/// Option separators, shell and JSON text, protocols of the block layer, or anything at all.
fn hostile_text() -> impl Strategy<Value = String> {
    let shaped = "[/a-z0-9]{0,8}(,|=|,,|\\{|\\}|\"|:|;|\\$\\(|\n|-device|json:|nbd:|fd:|on|id=x){1,6}[/a-z0-9.]{0,8}";
    prop_oneof![
        shaped.prop_map(String::from),
        shaped.prop_map(|text| format!("/srv/{text}")),
        shaped.prop_map(|text| format!("/srv/roms/{text}")),
        any::<String>(),
    ]
}
