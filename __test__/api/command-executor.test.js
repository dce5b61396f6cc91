'use strict'

const { existsSync } = require('node:fs')
const path = require('node:path')
const { CommandExecutor, LifecycleError, ProcessError } = require('../..')
const { cleanUp, host, newDirectory, rejection, unique, warning } = require('../kit')

afterEach(cleanUp)

const executor = new CommandExecutor()
const sh = (script, options) => executor.execute('sh', ['-c', script], { expectNonZeroExit: true, ...options })

test('the answer is what the program prints, in the plain locale and without a shell', async () => {
  expect(await executor.execute('printf', ['%s', '$HOME; `id`'])).toBe('$HOME; `id`')
  expect(await sh('echo $LC_ALL $LANG')).toBe('C C\n')
  expect(await executor.execute('cat', [], { stdin: 'in\n' })).toBe('in\n')
  expect(await executor.execute('cat', [])).toBe('')
  expect(await executor.execute('true', [])).toBe('')
})

test('an exit code that is not 0 is an error with what was said', async () => {
  const error = await rejection(sh('echo out; echo complaint >&2; exit 3'))
  expect(error).toBeInstanceOf(Error)
  expect(error).toMatchObject({
    name: 'CommandExecutionError', message: 'sh ended with exit code 3: complaint',
    code: 3, signal: null, stdout: 'out\n', stderr: 'complaint\n', timedOut: false
  })
  expect(error.cause).toBeInstanceOf(ProcessError)
  expect(error.cause.code).toBe('COMMAND_FAILED')
  expect(error.stack).toMatch(/^CommandExecutionError: sh ended[^]*command-executor\.test\.js/)
})

test('a failure is warned of, unless one is expected', async () => {
  const warned = warning(/^false ended with exit code 1$/)
  expect(await rejection(executor.execute('false', []))).toMatchObject({ code: 1 })
  expect(await warned).toMatch(/false/)
})

test('B16: what takes too long is ended, if need be by force, and is gone', async () => {
  const mark = unique('mark')
  const polite = await rejection(sh(`echo begun; exec sleep 60 # ${mark}`, { timeoutMs: 2000 }))
  expect(polite).toMatchObject({ code: null, signal: 'SIGTERM', stdout: 'begun\n', timedOut: true, cause: { code: 'TIMEOUT' } })
  const deaf = await rejection(sh(`trap '' TERM; while :; do sleep 0.1; done # ${mark}`, { timeoutMs: 2000, killGraceMs: 2000 }))
  expect(deaf).toMatchObject({ code: null, signal: 'SIGKILL', timedOut: true })
  expect(host.processes(mark)).toEqual([])
})

test('B16: what says too much is ended', async () => {
  const error = await rejection(executor.execute('yes', [], { maxBuffer: 1000, expectNonZeroExit: true }))
  expect(error).toMatchObject({ signal: 'SIGTERM', timedOut: false, cause: { code: 'COMMAND_FAILED' } })
  expect(error.message).toMatch(/^yes printed more than 1000 bytes/)
  expect(await executor.execute('head', ['-c', '3000000', '/dev/zero'])).toHaveLength(3_000_000)
})

test('the message has the end of a long complaint', async () => {
  const error = await rejection(sh('yes complaint | head -n 5000 >&2; echo last >&2; exit 1'))
  expect(error.message.length).toBeLessThan(8400)
  expect(error.message).toMatch(/last$/)
  expect(error.stderr.length).toBeGreaterThan(40_000)
})

test('what it leaves behind is not waited for', async () => {
  const left = Number(await sh('sleep 300 & echo $!', { timeoutMs: 60_000 }))
  process.kill(left, 'SIGKILL')
})

test('no secret is in an error, whoever prints it', async () => {
  const error = await rejection(sh('cat; echo "option password=tr0ub4dor,x Secret: hush" >&2; exit 1', { stdin: 'hunter2\n' }))
  const told = JSON.stringify([error.message, error.stdout, error.stderr, error.cause.message, error.cause.context])
  for (const secret of ['hunter2', 'tr0ub4dor', 'hush']) expect(told).not.toContain(secret)
  expect(error.stderr).toBe('option password=***,x Secret: ***\n')
  expect((await rejection(executor.execute('false', ['hunter2'], { expectNonZeroExit: true }))).message).not.toContain('hunter2')
})

test('a program that is not there, and one that cannot be run', async () => {
  const absent = await rejection(executor.execute('no-such-program-here', [], { expectNonZeroExit: true }))
  expect(absent).toMatchObject({ name: 'CommandExecutionError', code: null, signal: null, stdout: '', timedOut: false, cause: { code: 'PROGRAM_NOT_FOUND' } })
  const directory = await rejection(executor.execute('/etc', [], { expectNonZeroExit: true }))
  expect(directory.cause).toMatchObject({ name: 'ProcessError', code: 'SPAWN_FAILED' })
})

test('a signal ends it, and one that has fired begins nothing', async () => {
  const [directory, mark] = [newDirectory(), unique('mark')]
  const [begun, file] = [path.join(directory, 'begun'), path.join(directory, 'file')]
  const controller = new AbortController()
  const aborted = rejection(executor.execute('sh', ['-c', `touch ${begun}; exec sleep 60 # ${mark}`], { signal: controller.signal }))
  while (!existsSync(begun)) await new Promise((resolve) => setImmediate(resolve))
  controller.abort()
  expect(await aborted).toMatchObject({ name: 'LifecycleError', code: 'ABORTED' })
  expect(host.processes(mark)).toEqual([])
  expect(await rejection(executor.execute('touch', [file], { signal: AbortSignal.abort() }))).toMatchObject({ code: 'ABORTED' })
  expect(existsSync(file)).toBe(false)
})

test.each([
  ['no command', [undefined, []], 'command'],
  ['an empty command', ['', []], 'command'],
  ['arguments that are no texts', ['true', [1]], 'args'],
  ['a timeout that is none', ['true', [], { timeoutMs: -1 }], 'timeoutMs'],
  ['a buffer that is none', ['true', [], { maxBuffer: 'much' }], 'maxBuffer'],
  ['an input that is no text', ['true', [], { stdin: 5 }], 'stdin'],
  ['a signal that is none', ['true', [], { signal: 5 }], 'signal']
])('%s is refused', async (_, args, path) => {
  const error = await rejection(executor.execute(...args))
  expect(error).toBeInstanceOf(LifecycleError)
  expect(error).toMatchObject({ code: 'INVALID_CONFIG', context: { issues: [{ path }] } })
})
