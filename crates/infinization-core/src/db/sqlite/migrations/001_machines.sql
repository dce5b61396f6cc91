-- Columns carry the public contract's names in snake_case. Times are ISO 8601 in UTC.

CREATE TABLE machine (
    id              TEXT PRIMARY KEY,
    internal_name   TEXT NOT NULL UNIQUE,
    name            TEXT NOT NULL,
    os              TEXT NOT NULL,
    status          TEXT NOT NULL DEFAULT 'off',
    version         INTEGER DEFAULT 1, -- null reads as 1
    cpu_cores       INTEGER NOT NULL,
    ram_gb          REAL NOT NULL,
    disk_size_gb    REAL NOT NULL,
    gpu_pci_address TEXT,
    created_at      TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now')),
    updated_at      TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
) STRICT;

CREATE INDEX machine_status ON machine (status);

CREATE TABLE machine_configuration (
    machine_id                 TEXT PRIMARY KEY REFERENCES machine (id) ON DELETE CASCADE,
    qemu_pid                   INTEGER,
    tap_device_name            TEXT,
    qmp_socket_path            TEXT,
    guest_agent_socket_path    TEXT,
    infini_service_socket_path TEXT,
    graphic_protocol           TEXT,
    graphic_port               INTEGER,
    graphic_password           TEXT,
    graphic_host               TEXT,
    assigned_gpu_bus           TEXT,
    bridge                     TEXT,
    machine_type               TEXT,
    cpu_model                  TEXT,
    disk_bus                   TEXT,
    disk_cache_mode            TEXT,
    network_model              TEXT,
    network_queues             INTEGER,
    memory_balloon             INTEGER,
    disk_paths                 TEXT, -- JSON: ["/path", …]
    uefi_firmware              TEXT,
    hugepages                  INTEGER,
    cpu_pinning                TEXT, -- JSON: {"cores": [0, …]}
    enable_numa_ctl_pinning    INTEGER,
    cpu_pinning_strategy       TEXT,
    tpm_socket_path            TEXT,
    virtio_drivers_iso         TEXT,
    enable_audio               INTEGER,
    enable_usb_tablet          INTEGER
) STRICT;

CREATE TABLE firewall_rule (
    machine_id       TEXT NOT NULL REFERENCES machine (id) ON DELETE CASCADE,
    position         INTEGER NOT NULL, -- orders rules of equal priority as they were given
    id               TEXT NOT NULL,
    name             TEXT NOT NULL,
    description      TEXT,
    action           TEXT NOT NULL,
    direction        TEXT NOT NULL,
    priority         REAL NOT NULL,
    protocol         TEXT,
    src_port_start   REAL,
    src_port_end     REAL,
    dst_port_start   REAL,
    dst_port_end     REAL,
    src_ip_addr      TEXT,
    src_ip_mask      TEXT,
    dst_ip_addr      TEXT,
    dst_ip_mask      TEXT,
    connection_state TEXT, -- JSON, in either of the two shapes users have
    overrides_dept   INTEGER NOT NULL,
    PRIMARY KEY (machine_id, position),
    UNIQUE (machine_id, id)
) STRICT;
