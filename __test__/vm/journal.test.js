'use strict'

const { cleanUp, openInstance, rejection, root, runNode, running } = require('../kit')

afterEach(cleanUp)

const forced = { graceful: false }

async function all (entries) {
  const read = []
  for await (const entry of entries) read.push(entry)
  return read
}

const told = ({ kind, operation, phase, step, to }) => [kind, operation, phase ?? to, step].filter(Boolean).join(' ')

test('tells what was done with a machine, also after it is gone and to the next instance', async () => {
  const instance = await openInstance()
  const { vmId } = await running(instance)
  await instance.suspendVM(vmId)
  await expect(rejection(instance.resetVM(vmId))).resolves.toMatchObject({ code: 'INVALID_STATE' })
  await instance.resumeVM(vmId)
  await instance.stopVM(vmId, forced)
  await instance.deleteVM(vmId, { deleteDisks: true })
  const entries = await all(instance.journal({ vmId }))

  expect(entries.map(({ seq }) => seq)).toEqual(entries.map((_, at) => at))
  for (const entry of entries) {
    expect(entry.vmId).toBe(vmId)
    expect(entry.timestamp).toBeInstanceOf(Date)
  }
  expect(entries.filter(({ kind }) => kind === 'operation').map(told)).toEqual([
    'operation create begun', 'operation create done', 'operation suspend begun', 'operation suspend done',
    'operation reset begun', 'operation reset failed', 'operation resume begun', 'operation resume done',
    'operation stop begun', 'operation stop done', 'operation delete begun', 'operation delete done'
  ])
  expect(entries.filter(({ kind }) => kind === 'status').map(({ from, to }) => [from, to])).toEqual([
    [undefined, 'starting'], ['starting', 'running'], ['running', 'suspended'], ['suspended', 'running'], ['running', 'off']
  ])
  const failed = entries.find(({ phase }) => phase === 'failed')
  expect(failed.detail).toMatchObject({ code: 'INVALID_STATE', currentStatus: 'suspended' })
  const spawned = entries.filter(({ step }) => step === 'spawn QEMU')
  expect(spawned.map(({ phase }) => phase)).toEqual(['begun', 'done'])
  expect(spawned[1].detail.pid).toBeGreaterThan(0)
  const [exit] = entries.filter(({ kind }) => kind === 'exit')
  expect(exit).toMatchObject({ actor: 'process', operation: 'stop', detail: { reason: 'host-signal' } })
  expect(exit.detail.endedAt).toBeInstanceOf(Date)

  await instance.shutdown()
  const next = await openInstance({ stateDir: instance.stateDir })
  expect(await all(next.journal({ vmId }))).toEqual(entries)
  expect(await next.getJournalRange(vmId)).toEqual({ vmId, firstSeq: 0, lastSeq: entries.length - 1 })
  expect(await next.getJournalRange('nobody')).toBeNull()
  expect(await all(next.journal({ vmId: 'nobody' }))).toEqual([])
})

test('gives the part that is asked for', async () => {
  const instance = await openInstance()
  const { vmId } = await running(instance)
  const entries = await all(instance.journal({ vmId }))
  const part = await all(instance.journal({ vmId, since: 3, until: 5 }))
  expect(part).toEqual(entries.slice(3, 6))
  expect(await all(instance.journal({ vmId, limit: 2 }))).toEqual(entries.slice(0, 2))
  const steps = await all(instance.journal({ vmId, kinds: ['step'], steps: ['continue'] }))
  expect(steps.map(told)).toEqual(['step create begun continue', 'step create done continue'])
  expect(await all(instance.journal({ since: new Date(Date.now() + 60_000) }))).toEqual([])
  expect(await all(instance.journal({ until: new Date() }))).toEqual(entries)
  expect(await all(instance.journal({}))).toEqual(entries)
})

test('follows: entries come as they are written, until return() or shutdown()', async () => {
  const instance = await openInstance()
  const { vmId } = await running(instance)
  const { lastSeq } = await instance.getJournalRange(vmId)
  const follower = instance.journal({ vmId, since: lastSeq + 1, kinds: ['operation'], follow: true })
  const waiting = follower.next()
  await instance.suspendVM(vmId)
  expect(told((await waiting).value)).toBe('operation suspend begun')
  expect(told((await follower.next()).value)).toBe('operation suspend done')
  const pending = follower.next()
  await follower.return()
  expect((await pending).done).toBe(true)
  expect((await follower.next()).done).toBe(true)

  const other = all(instance.journal({ vmId, follow: true }))
  const limited = await all(instance.journal({ vmId, follow: true, limit: 3 }))
  expect(limited).toHaveLength(3)
  await instance.deleteVM(vmId, { deleteDisks: true })
  await instance.shutdown()
  // What was not read by then can be read by the next instance.
  expect(Array.isArray(await other)).toBe(true)
})

test.each([
  [{ since: 1 }, 'since'], [{ vmId: '../x' }, 'vmId'], [{ kinds: ['nonsense'] }, 'kinds[0]'], [{ last: 1 }, 'last'],
  [{ vmId: 'vm-1', since: 'yesterday' }, 'since'], [{ follow: 'yes' }, 'follow'], [7, 'options']
])('refuses %j by the first next()', async (options, path) => {
  const instance = await openInstance()
  const error = await rejection(instance.journal(options).next())
  expect(error).toMatchObject({ name: 'LifecycleError', code: 'INVALID_CONFIG' })
  expect(error.context.issues[0].path).toBe(path)
})

test('is refused before initialize() and after shutdown()', async () => {
  const { Infinization } = require('../..')
  const unopened = new Infinization({ stateDir: '/nowhere' })
  await expect(rejection(unopened.journal().next())).resolves.toMatchObject({ code: 'INVALID_STATE' })
  const instance = await openInstance()
  await instance.shutdown()
  await expect(rejection(instance.journal().next())).resolves.toMatchObject({ code: 'CLOSED' })
})

test('F10: a reader that waits does not keep the process alive', async () => {
  const { stateDir } = await openInstance()
  const { code } = await runNode(`
    const { Infinization } = require(${JSON.stringify(root)})
    const instance = new Infinization({ stateDir: ${JSON.stringify(`${stateDir}/other`)}, bridgeConntrackMode: 'degrade' })
    instance.initialize().then(() => instance.journal({ follow: true }).next())
  `)
  expect(code).toBe(0)
})

test('no secret gets into it', async () => {
  const instance = await openInstance()
  const displayPassword = 'geh31m-p'
  const { vmId } = await running(instance, { displayPassword })
  await instance.stopVM(vmId, forced)
  const entries = await all(instance.journal({ vmId }))
  expect(entries.map(({ step }) => step)).toContain('set display password')
  expect(JSON.stringify(entries)).not.toContain(displayPassword)
})
