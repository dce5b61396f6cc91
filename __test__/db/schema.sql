-- The tables of models.prisma, as Prisma's migrations would make them.

CREATE TYPE "RuleSetType" AS ENUM ('DEPARTMENT', 'VM');
CREATE TYPE "RuleAction" AS ENUM ('ACCEPT', 'DROP', 'REJECT');
CREATE TYPE "RuleDirection" AS ENUM ('IN', 'OUT', 'INOUT');
CREATE TYPE "FirewallPolicy" AS ENUM ('ALLOW_ALL', 'BLOCK_ALL');

CREATE TABLE "FirewallRuleSet" (
    "id"           TEXT PRIMARY KEY,
    "name"         TEXT NOT NULL,
    "internalName" TEXT NOT NULL UNIQUE,
    "entityType"   "RuleSetType" NOT NULL,
    "entityId"     TEXT NOT NULL,
    "priority"     INTEGER NOT NULL DEFAULT 500,
    "isActive"     BOOLEAN NOT NULL DEFAULT true,
    UNIQUE ("entityType", "entityId")
);

CREATE TABLE "FirewallRule" (
    "id"                TEXT PRIMARY KEY,
    "ruleSetId"         TEXT NOT NULL REFERENCES "FirewallRuleSet" ("id") ON DELETE CASCADE ON UPDATE CASCADE,
    "name"              TEXT NOT NULL,
    "description"       TEXT,
    "action"            "RuleAction" NOT NULL DEFAULT 'ACCEPT',
    "direction"         "RuleDirection" NOT NULL DEFAULT 'INOUT',
    "priority"          INTEGER NOT NULL DEFAULT 500,
    "protocol"          TEXT NOT NULL DEFAULT 'all',
    "srcPortStart"      INTEGER,
    "srcPortEnd"        INTEGER,
    "dstPortStart"      INTEGER,
    "dstPortEnd"        INTEGER,
    "srcIpAddr"         TEXT,
    "srcIpMask"         TEXT,
    "dstIpAddr"         TEXT,
    "dstIpMask"         TEXT,
    "connectionState"   JSONB,
    "overridesDept"     BOOLEAN NOT NULL DEFAULT false,
    "isSystemGenerated" BOOLEAN NOT NULL DEFAULT false
);

CREATE TABLE "Department" (
    "id"                TEXT PRIMARY KEY,
    "name"              TEXT NOT NULL,
    "firewallRuleSetId" TEXT UNIQUE REFERENCES "FirewallRuleSet" ("id") ON DELETE SET NULL ON UPDATE CASCADE,
    "firewallPolicy"    "FirewallPolicy" NOT NULL DEFAULT 'BLOCK_ALL',
    "bridgeName"        TEXT,
    "ipSubnet"          TEXT,
    "gatewayIP"         TEXT,
    "vni"               INTEGER UNIQUE,
    "overlayMode"       TEXT NOT NULL DEFAULT 'local',
    "gatewayNodeId"     TEXT,
    "overlayMtu"        INTEGER NOT NULL DEFAULT 1370
);

CREATE TABLE "Machine" (
    "id"                 TEXT PRIMARY KEY,
    "name"               TEXT NOT NULL,
    "internalName"       TEXT NOT NULL,
    "status"             TEXT NOT NULL,
    "os"                 TEXT NOT NULL,
    "cpuCores"           INTEGER NOT NULL DEFAULT 0,
    "ramGB"              INTEGER NOT NULL DEFAULT 0,
    "diskSizeGB"         INTEGER NOT NULL DEFAULT 0,
    "gpuPciAddress"      TEXT,
    "version"            INTEGER NOT NULL DEFAULT 1,
    "nodeId"             TEXT,
    "departmentId"       TEXT REFERENCES "Department" ("id") ON DELETE SET NULL ON UPDATE CASCADE,
    "firewallRuleSetId"  TEXT UNIQUE REFERENCES "FirewallRuleSet" ("id") ON DELETE SET NULL ON UPDATE CASCADE,
    "userId"             TEXT,
    "templateId"         TEXT,
    "poolId"             TEXT,
    "migrationJobId"     TEXT,
    "goldenImageBuildId" TEXT,
    "localIP"            TEXT,
    "publicIP"           TEXT,
    "createdAt"          TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP,
    "updatedAt"          TIMESTAMP(3) NOT NULL DEFAULT CURRENT_TIMESTAMP
);

CREATE TABLE "MachineConfiguration" (
    "id"                      TEXT PRIMARY KEY,
    "machineId"               TEXT NOT NULL UNIQUE REFERENCES "Machine" ("id") ON DELETE CASCADE ON UPDATE CASCADE,
    "qmpSocketPath"           TEXT,
    "qemuPid"                 INTEGER,
    "tapDeviceName"           TEXT,
    "graphicProtocol"         TEXT,
    "graphicPort"             INTEGER,
    "graphicPassword"         TEXT,
    "graphicHost"             TEXT,
    "assignedGpuBus"          TEXT,
    "bridge"                  TEXT,
    "networkModel"            TEXT DEFAULT 'virtio-net-pci',
    "networkQueues"           INTEGER DEFAULT 1,
    "machineType"             TEXT DEFAULT 'q35',
    "cpuModel"                TEXT DEFAULT 'host',
    "diskBus"                 TEXT DEFAULT 'virtio',
    "diskCacheMode"           TEXT DEFAULT 'writeback',
    "memoryBalloon"           BOOLEAN DEFAULT false,
    "hugepages"               BOOLEAN DEFAULT false,
    "diskPaths"               JSONB,
    "uefiFirmware"            TEXT,
    "cpuPinning"              JSONB,
    "enableNumaCtlPinning"    BOOLEAN DEFAULT false,
    "cpuPinningStrategy"      TEXT DEFAULT 'basic',
    "tpmSocketPath"           TEXT,
    "guestAgentSocketPath"    TEXT,
    "infiniServiceSocketPath" TEXT,
    "virtioDriversIso"        TEXT,
    "enableAudio"             BOOLEAN DEFAULT false,
    "enableUsbTablet"         BOOLEAN DEFAULT true,
    "ioThreads"               INTEGER,
    "gpuRomFile"              TEXT,
    "gpuAudioBus"             TEXT,
    "numaConfig"              JSONB,
    "secureboot"              BOOLEAN,
    "setupComplete"           BOOLEAN DEFAULT false,
    "installStartedAt"        TIMESTAMP(3),
    "lastError"               TEXT,
    "xml"                     JSONB
);
