'use strict'

// F47: where the host gives a process no more threads or descriptors, calls fail, or the library refuses to be loaded;
// the process is never ended by it, and no promise stays open.

const { cleanUp, newDirectory, runNode } = require('../kit')

afterEach(cleanUp)

const script = (stateDir) => `
  const tell = (what) => (error) => console.log(what, error?.code ?? 'ok')
  let library
  try {
    library = require('.')
  } catch (error) {
    tell('load')(error)
    process.exit()
  }
  const attempt = (what, call) => call().then(() => tell(what)(), tell(what))
  const images = new library.QemuImgService()
  const instance = new library.Infinization({ stateDir: ${JSON.stringify(stateDir)}, bridgeConntrackMode: 'degrade', accelerator: 'tcg' })
  attempt('create', () => images.createImage({ path: ${JSON.stringify(stateDir)} + '/disk.qcow2', sizeGB: 1, format: 'qcow2' }))
    .then(() => attempt('initialize', () => instance.initialize()))
    .then(() => attempt('shutdown', () => instance.shutdown()))
`

// How the script ends under each limit, down to the least under which a Node.js that does nothing runs.
async function ends (under, { most, step }) {
  const all = []
  for (let limit = most; (await runNode('', { under: under(limit), timeout: 10000 })).code === 0; limit -= step) {
    const { code, signal, stdout } = await runNode(script(newDirectory()), { under: under(limit) })
    all.push({ limit, code, signal, told: stdout.trim().split('\n') })
  }
  return all
}

// What the host withheld is said, or was not needed.
function expectTold (all, codes) {
  for (const { limit, code, signal, told } of all) {
    expect({ limit, code, signal }).toEqual({ limit, code: 0, signal: null })
    const whole = told.length === 1 ? ['load'] : ['create', 'initialize', 'shutdown']
    expect(told.map((line) => line.split(' ')[0])).toEqual(whole)
    for (const line of told) expect(codes).toContain(line.split(' ')[1])
  }
}

test('F47: threads are missing', async () => {
  // The limit is a user's, and root has none; the user must still be able to read the checkout.
  const uid = 50000 + Math.floor(Math.random() * 10000)
  const as = ['setpriv', `--reuid=${uid}`, `--regid=${uid}`, '--clear-groups', '--inh-caps=+dac_override', '--ambient-caps=+dac_override']
  const all = await ends((threads) => [...as, 'prlimit', `--nproc=${threads}`], { most: 24, step: 1 })
  expectTold(all, ['ok', 'SPAWN_FAILED', 'COMMAND_FAILED', 'PERMISSION_DENIED'])
  expect(all.at(-1).told).toEqual(['load SPAWN_FAILED'])
  expect(all[0].told).toEqual(['create ok', 'initialize PERMISSION_DENIED', 'shutdown ok'])
}, 120_000)

test('F47: descriptors are missing', async () => {
  const all = await ends((descriptors) => ['prlimit', `--nofile=${descriptors}`], { most: 50, step: 1 })
  expectTold(all, ['ok', 'SPAWN_FAILED', 'COMMAND_FAILED', 'STATE_FILE', 'ERR_DLOPEN_FAILED', 'EMFILE'])
  expect(all.map(({ told }) => told[0])).toContain('load SPAWN_FAILED')
  expect(all[0].told).toEqual(['create ok', 'initialize ok', 'shutdown ok'])
}, 120_000)
