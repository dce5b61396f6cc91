-- Secrets as AES-256-GCM makes them, `iv:tag:data`: 'graphic_password', and 'disk_key:' with the disk's path. A store
-- without a key keeps passwords in machine_configuration, and no keys of disks.

CREATE TABLE secret (
    machine_id TEXT NOT NULL REFERENCES machine (id) ON DELETE CASCADE,
    name       TEXT NOT NULL,
    sealed     TEXT NOT NULL,
    PRIMARY KEY (machine_id, name)
) STRICT;
