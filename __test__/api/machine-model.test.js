'use strict'

// Machines as data: the guards, and the lines of a program's own log.

const lib = require('../..')

const info = { id: '1', name: 'a', internalName: 'a', os: 'linux', status: 'running', resources: { cpuCores: 1, ramGB: 1, diskSizeGB: 10 } }
const vm = { id: '1', name: 'a', internalName: 'a' }

test.each([
  ['isValidVMStatus', ['running', 'off'], ['RUNNING', 'backing_up', null]],
  ['isValidVMOperation', Object.values(lib.VMOperation), ['start', 'toString', ['START'], undefined]],
  ['isValidVMInfo', [info], [null, [], {}, { ...info, status: 'on' }, { ...info, resources: null }, { ...info, os: undefined }]],
  ['isValidDisplayConfig', [{ type: 'vnc', port: 5900 }], [{ type: 'rdp', port: 1 }, { type: 'spice', port: 0 }, { type: 'spice', port: '1' }, null]],
  ['isValidNetworkConfig', [{ bridge: 'br0' }], [{ bridge: '' }, {}, 'br0']],
  ['isValidStorageConfig', [{ path: '/a', sizeGB: 0.5 }], [{ path: '', sizeGB: 1 }, { path: '/a', sizeGB: 0 }, { path: '/a', sizeGB: NaN }]],
  ['isValidVMCompleteConfig', [{ vm }], [{}, { vm: null }, { vm: { ...vm, name: 1 } }]],
  ['isValidGpuPassthroughConfig',
    [{}, { gpuPciAddress: '01:00.0', gpuAudioPciAddress: '01:00.1', gpuRomfile: '/var/lib/infinization/roms/a.rom' }],
    [null, { gpuPciAddress: '1:0.0' }, { gpuPciAddress: '01:00.0', gpuAudioPciAddress: '0000:01:00.0' }, { gpuRomfile: '/var/lib/infinization/roms/../a' },
      { gpuRomfile: 'roms/a.rom' }, { gpuRomfile: '/var/lib/infinization/roms' }]]
])('%s', (guard, right, wrong) => {
  expect(right.filter((value) => !lib[guard](value))).toEqual([])
  expect(wrong.filter((value) => lib[guard](value))).toEqual([])
})

test('defaults are frozen, all of them', () => {
  expect(Object.values(lib.ConfigDefaults).filter((part) => !Object.isFrozen(part))).toEqual([])
  expect(lib.ConfigDefaults.limits).toMatchObject({ maxCpuCores: lib.MAX_VM_CPU_CORES, maxVncDisplay: 99 })
})

describe('Debugger', () => {
  const { DEBUG } = process.env
  let told

  beforeEach(() => {
    told = []
    jest.spyOn(console, 'error').mockImplementation((line) => told.push(line.replace(/^\[\S+Z\] /, '')))
  })

  afterEach(() => {
    jest.restoreAllMocks()
    if (DEBUG === undefined) delete process.env.DEBUG
    else process.env.DEBUG = DEBUG
  })

  test.each([
    [undefined, ['ERROR', 'WARN']],
    ['infinization:net', ['ERROR', 'WARN', 'INFO', 'DEBUG']],
    ['other, infinization:*', ['ERROR', 'WARN', 'INFO', 'DEBUG']],
    ['infinization:net:info', ['ERROR', 'WARN', 'INFO']],
    ['infinization:*,-infinization:net', ['ERROR', 'WARN']],
    ['infinization.net', ['ERROR', 'WARN']]
  ])('DEBUG=%s', (wanted, levels) => {
    delete process.env.DEBUG
    if (wanted !== undefined) process.env.DEBUG = wanted
    const its = new lib.Debugger('net')
    for (const level of ['error', 'warn', 'info', 'debug']) its[level]('up', { queues: 2 })
    expect(told).toEqual(levels.map((level) => `${level} infinization:net up {"queues":2}`))
  })

  test.each(['password', 'Passwd', 'passphrase', 'client_secret'])('what is called %s is left out', (name) => {
    const its = new lib.Debugger('net')
    its.error(`-spice port=1,${name}=geheim,x`)
    its.warn(`${name}: geheim`)
    its.warn('up', { [name]: 'geheim, ja', queues: 2 })
    expect(told).toEqual([
      `ERROR infinization:net -spice port=1,${name}=***,x`,
      `WARN infinization:net ${name}: ***`,
      `WARN infinization:net up {"${name}":"***","queues":2}`
    ])
  })

  test('a line may begin with its level and end with what belongs to it', () => {
    process.env.DEBUG = '*'
    const its = new lib.Debugger('net')
    its.log('warn', 'a', 'b', { c: 1 })
    its.log('a')
    expect(told).toEqual(['WARN infinization:net a b {"c":1}', 'DEBUG infinization:net a'])
  })
})
