'use strict'

// One life of rows, told to any database by its 16 operations and written down: `play(world)` answers a
// transcript, which must be the same whatever the database is.
//
// A world has the operations (`store`) and hands beside them: `add` (see machineRows), `set(machine,
// columns)`, `setJson(machine, column, value)` for its configuration, and `remove(machine)`. One with departments and nodes (`shared`) has
// `addDepartment` too, and its operations are those of NODE.

const NODE = 'node-a'
const [full, bare, running, elsewhere, claimed, broken] = ['vm-full', 'vm-bare', 'vm-running', 'vm-elsewhere', 'vm-claimed', 'vm-broken']

const rule = (id, priority, more) => ({
  id, name: id, action: 'ACCEPT', direction: 'IN', priority, protocol: 'tcp', ...more
})

// Out of order, and of every shape. No two have the same priority: their order would be the database's.
const machineRules = [
  rule('r-last', 900, { action: 'REJECT', direction: 'OUT', protocol: 'all' }),
  rule('r-flags', 100, { dstPortStart: 22, dstPortEnd: 23, connectionState: { established: true, new: true } }),
  rule('r-states', 200, { action: 'DROP', protocol: 'udp', srcPortStart: 53, connectionState: { states: ['ESTABLISHED', 'RELATED'] } }),
  rule('r-whole', 300, {
    description: 'with every column', direction: 'INOUT', srcPortStart: 1, srcPortEnd: 2, dstPortStart: 3, dstPortEnd: 4,
    srcIpAddr: '10.0.0.0', srcIpMask: '8', dstIpAddr: 'fd00::', dstIpMask: '64', connectionState: {}, overridesDept: true
  })
]

// An id is one rule's of all machines.
const otherRules = machineRules.map((given) => ({ ...given, id: `other-${given.id}` }))

const departmentRules = [rule('d-late', 950), rule('d-early', 50, { action: 'DROP', connectionState: { states: ['NEW'] } })]

// Every column a configuration has, with a value that no default has.
const configuration = {
  qemuPid: 4711,
  tapDeviceName: 'vnet-0123456789',
  qmpSocketPath: '/run/a.sock',
  guestAgentSocketPath: '/run/a-ga.sock',
  infiniServiceSocketPath: '/run/a.socket',
  graphicProtocol: 'spice',
  graphicPort: 5901,
  graphicPassword: 'pass "word" \\ ü',
  graphicHost: '192.0.2.1',
  assignedGpuBus: '0000:01:00.0',
  bridge: 'infinibr0',
  machineType: 'pc',
  cpuModel: 'max',
  diskBus: 'scsi',
  diskCacheMode: 'none',
  networkModel: 'e1000e',
  networkQueues: 4,
  memoryBalloon: true,
  diskPaths: ['/disks/a.qcow2', '/disks/ü b.qcow2'],
  uefiFirmware: '/usr/share/OVMF/OVMF_CODE_4M.fd',
  hugepages: true,
  cpuPinning: { cores: [0, 2, 5] },
  enableNumaCtlPinning: true,
  cpuPinningStrategy: 'hybrid',
  tpmSocketPath: '/run/a-tpm.sock',
  virtioDriversIso: '/isos/virtio.iso',
  enableAudio: true,
  enableUsbTablet: false
}

const nothing = Object.fromEntries(Object.keys(configuration).map((column) => [column, null]))

const ask = (method, ...args) => ({
  title: `${method}(${args.map((arg) => JSON.stringify(arg)).join(', ')})`, act: ({ store }) => store[method](...args)
})
const then = (title, hand) => ({ title, hand })
const shared = (steps) => steps.map((step) => ({ ...step, shared: true }))

// A configuration's volatile columns, which an operation that reads no more answers too.
const scan = () => ask('findMachinesByStatuses', ['off', 'running', 'suspended'])

const steps = [
  // What is not there.
  ...['findMachine', 'findMachineByInternalName', 'findMachineWithConfig', 'getMachineInternalName', 'getMachineDiskPath',
    'getDepartmentFirewallPolicy', 'getFirewallRuleSetId', 'getFirewallRules', 'getFirewallRulesSplit'].map((method) => ask(method, 'no-such-vm')),
  ask('findRunningVMs'),
  ask('findMachinesByStatuses', ['off', 'error']),
  ask('updateMachineStatus', 'no-such-vm', 'off'),
  ask('updateMachineConfiguration', 'no-such-vm', { qemuPid: 1 }),
  ask('transitionVMStatus', 'no-such-vm', 'off', 'starting', 1),
  ask('clearMachineConfiguration', 'no-such-vm'),
  ask('clearVolatileMachineConfiguration', 'no-such-vm'),

  // What no database is asked.
  ask('updateMachineConfiguration', '', { qemuPid: 1 }),
  ask('updateMachineConfiguration', bare, { qemuPid: 'x' }),
  ask('updateMachineConfiguration', bare, { noSuchColumn: 1 }),
  ask('updateMachineConfiguration', bare),
  ask('findMachinesByStatuses', 'off'),
  ask('transitionVMStatus', bare, 'off', 'starting', '1'),

  then('machines are added', async ({ add }) => {
    await add({ id: full, name: 'Büro "1"', internalName: 'internal-full', cpuCores: 4, ramGB: 8, diskSizeGB: 64, gpuPciAddress: '0000:01:00.0', nodeId: NODE, configuration: nothing, rules: machineRules })
    await add({ id: bare, nodeId: NODE, os: 'windows11' })
    await add({ id: running, nodeId: NODE, status: 'running', configuration: { ...nothing, qemuPid: 7, tapDeviceName: 'vnet-7', qmpSocketPath: '/run/7' } })
    await add({ id: claimed, nodeId: NODE, status: 'backing_up' })
    await add({ id: broken, nodeId: NODE, status: 'error', configuration: nothing })
  }),

  // A machine of which nothing is known but its row.
  ask('findMachine', bare),
  ask('findMachineByInternalName', bare),
  ask('findMachineWithConfig', bare),
  ask('getMachineInternalName', bare),
  ask('getMachineDiskPath', bare),
  ask('getFirewallRules', bare),
  ask('getFirewallRulesSplit', bare),
  ask('getFirewallRuleSetId', bare),
  ask('getDepartmentFirewallPolicy', bare),
  ask('clearMachineConfiguration', bare),
  ask('findMachineByInternalName', bare),

  // One with everything.
  ask('findMachine', full),
  ask('findMachineByInternalName', 'internal-full'),
  ask('findMachineByInternalName', full),
  ask('getMachineInternalName', full),
  ask('getMachineDiskPath', full),
  ask('getFirewallRuleSetId', full),
  ask('getFirewallRules', full),
  ask('getFirewallRulesSplit', full),
  ask('findMachineWithConfig', full),
  ask('updateMachineConfiguration', full, configuration),
  ask('findMachineWithConfig', full),
  ask('updateMachineConfiguration', full, {}),
  ask('updateMachineConfiguration', full, { bridge: 'br9', networkQueues: 0, memoryBalloon: false, diskPaths: [], cpuPinning: null, graphicPassword: '' }),
  ask('findMachineWithConfig', full),
  ask('updateMachineConfiguration', full, { ...nothing, diskPaths: undefined }),
  ask('findMachineWithConfig', full),
  ask('updateMachineConfiguration', full, configuration),
  ask('clearVolatileMachineConfiguration', full),
  scan(),
  ask('updateMachineConfiguration', full, { qemuPid: 4712, qmpSocketPath: '/run/b.sock' }),
  ask('clearMachineConfiguration', full),
  scan(),
  ask('findMachineWithConfig', full),
  // The row is made with the first write.
  ask('updateMachineConfiguration', bare, configuration),
  ask('findMachineWithConfig', bare),

  // Lists.
  ask('findRunningVMs'),
  ask('findMachinesByStatuses', []),
  ask('findMachinesByStatuses', ['backing_up', 'error', 'no such status']),

  // Statuses and their guards.
  ask('updateMachineStatus', bare, 'running'),
  ask('findRunningVMs'),
  ask('updateMachineStatus', bare, 'off', { onlyIfNotIn: ['error', 'backing_up'] }),
  ask('updateMachineStatus', broken, 'off', { onlyIfNotIn: ['error'] }),
  ask('updateMachineStatus', claimed, 'off', { onlyIfNotIn: ['error', 'backing_up'] }),
  ask('findMachinesByStatuses', ['error', 'backing_up', 'off']),
  ask('updateMachineStatus', broken, 'off', { onlyIfNotIn: [] }),
  ask('findMachine', broken),
  ask('updateMachineStatus', claimed, 'capturing', {}),
  ask('findMachine', claimed),
  ask('findMachineWithConfig', claimed),

  // Transitions: the version speaks before the status.
  ask('transitionVMStatus', bare, 'off', 'starting', 1),
  ask('transitionVMStatus', bare, 'off', 'starting', 1),
  ask('transitionVMStatus', bare, 'starting', 'running', 1),
  ask('transitionVMStatus', bare, 'off', 'starting', 2),
  ask('transitionVMStatus', bare, 'starting', 'running', 3),
  ask('transitionVMStatus', bare, 'starting', 'running', 2),
  ask('updateMachineStatus', bare, 'off'),
  ask('findMachineWithConfig', bare),
  then('a machine is claimed beside us', ({ set }) => set(bare, { status: 'moving' })),
  ask('transitionVMStatus', bare, 'off', 'starting', 3),
  ask('findMachine', bare),
  then('another has stepped its version', ({ set }) => set(bare, { status: 'off', version: 40 })),
  ask('transitionVMStatus', bare, 'off', 'starting', 3),
  ask('transitionVMStatus', bare, 'off', 'starting', 40),

  // Columns that others wrote, and badly.
  ...[{ a: 1 }, 'text', ['/a', 1], 7].flatMap((diskPaths) => [
    then(`diskPaths is ${JSON.stringify(diskPaths)}`, ({ setJson }) => setJson(broken, 'diskPaths', diskPaths)),
    ask('findMachineWithConfig', broken)
  ]),
  ask('transitionVMStatus', broken, 'off', 'starting', 1),
  ask('findMachine', broken),
  ask('findMachineByInternalName', broken),
  ask('updateMachineConfiguration', broken, { diskPaths: ['/mended'] }),
  ...['text', 5, [], [1], {}, { cores: 'all' }, { cores: [0, -1] }, { cores: [1.5] }].flatMap((cpuPinning) => [
    then(`cpuPinning is ${JSON.stringify(cpuPinning)}`, ({ setJson }) => setJson(broken, 'cpuPinning', cpuPinning)),
    ask('findMachineWithConfig', broken)
  ]),
  then('cpuPinning has more than cores', ({ setJson }) => setJson(broken, 'cpuPinning', { cores: [3], by: 'hand' })),
  ask('findMachineWithConfig', broken),

  // A row that goes.
  then('a machine is deleted beside us', ({ remove }) => remove(running)),
  ask('findMachine', running),
  ask('findMachineWithConfig', running),
  ask('findRunningVMs'),
  ask('updateMachineStatus', running, 'off', { onlyIfNotIn: ['error'] }),
  ask('clearVolatileMachineConfiguration', running),
  ask('updateMachineConfiguration', running, { qemuPid: 8 }),
  ask('transitionVMStatus', running, 'running', 'off', 1),
  ask('getFirewallRules', running),

  // Nodes and departments, which the embedded store has not.
  ...shared([
    then('a machine of another node, one of none, and departments', async ({ add, addDepartment }) => {
      await addDepartment({ id: 'dept-open', firewallPolicy: 'ALLOW_ALL', rules: departmentRules })
      await addDepartment({ id: 'dept-shut', name: 'Größe', firewallPolicy: 'BLOCK_ALL' })
      await add({ id: elsewhere, nodeId: 'node-b', status: 'running', departmentId: 'dept-open', rules: otherRules, configuration: nothing })
      await add({ id: 'vm-nowhere', status: 'running', departmentId: 'dept-shut', configuration: nothing })
      await add({ id: 'vm-here', nodeId: NODE, status: 'running', departmentId: 'dept-open' })
    }),
    ask('findRunningVMs'),
    ask('findMachinesByStatuses', ['running']),
    ask('findMachineByInternalName', elsewhere),
    ask('findMachineByInternalName', 'vm-nowhere'),
    // Whoever has the id may read and write the row, wherever it is.
    ask('findMachine', elsewhere),
    ask('findMachineWithConfig', elsewhere),
    ask('findMachineWithConfig', 'vm-nowhere'),
    ask('findMachineWithConfig', 'vm-here'),
    ask('updateMachineStatus', elsewhere, 'suspended'),
    ask('updateMachineConfiguration', elsewhere, { qemuPid: 9 }),
    ask('findMachineWithConfig', elsewhere),
    ask('getFirewallRules', elsewhere),
    ask('getFirewallRulesSplit', elsewhere),
    ask('getFirewallRules', 'vm-here'),
    ask('getFirewallRulesSplit', 'vm-nowhere'),
    ask('getDepartmentFirewallPolicy', elsewhere),
    ask('getDepartmentFirewallPolicy', 'vm-nowhere'),
    ask('getFirewallRuleSetId', elsewhere),
    ask('getFirewallRuleSetId', 'vm-here')
  ])
]

// The steps' titles and what came of each.
async function play (world) {
  const transcript = []
  for (const { title, act, hand, shared } of steps) {
    if (shared && !world.shared) continue
    await hand?.(world)
    transcript.push({ step: `${transcript.length + 1} ${title}`, ...act && await outcome(() => act(world)) })
  }
  return transcript
}

async function outcome (act) {
  try {
    return { answer: plain(await act()) }
  } catch (error) {
    return { error: error.code ? `${error.name} ${error.code}` : `${error}` }
  }
}

// An answer that crosses HTTP must come out as it went in. Lists have no order but that of rules.
function plain (answer) {
  const crossed = answer === undefined ? undefined : JSON.parse(JSON.stringify(answer))
  expect(crossed).toStrictEqual(answer)
  if (!Array.isArray(crossed) || !crossed.every((row) => row.internalName)) return crossed
  return crossed.sort((a, b) => a.id < b.id ? -1 : 1)
}

module.exports = { NODE, configuration, play, steps }
