'use strict'

// Taking a running QEMU back.

const path = require('node:path')
const { symlinkSync } = require('node:fs')
const { cleanUp, openInstance, rejection, running } = require('../kit')

afterEach(cleanUp)

test('a machine that is attached is so at once, whatever it is busy with', async () => {
  const instance = await openInstance()
  const { vmId, qmpSocketPath } = await running(instance)
  const controller = new AbortController()
  // The guest has no operating system: it ignores the button.
  const stopping = rejection(instance.stopVM(vmId, { timeout: 25_000, force: false, signal: controller.signal }))
  await instance.attachToRunningVM(vmId, qmpSocketPath)
  const handler = instance.getEventHandler()
  expect([handler.isAttached(vmId), handler.getAttachedVMs()]).toEqual([true, [vmId]])
  controller.abort()
  expect(await stopping).toMatchObject({ code: 'ABORTED' })
})

test('the socket may be named by another path', async () => {
  const instance = await openInstance()
  const { vmId, qmpSocketPath } = await running(instance)
  const link = path.join(instance.stateDir, 'link')
  symlinkSync(path.dirname(qmpSocketPath), link)
  await instance.attachToRunningVM(vmId, path.join(link, path.basename(qmpSocketPath)))
})

test('a machine that is attached stays so, whatever socket is named', async () => {
  const instance = await openInstance()
  const { vmId } = await running(instance)
  const handler = instance.getEventHandler()
  await handler.detachFromVM(vmId)
  expect(handler.isAttached(vmId)).toBe(false)
  await instance.attachToRunningVM(vmId, '/run/none.sock')
  expect(handler.isAttached(vmId)).toBe(true)
})

test('a socket that is not the machine\'s own is refused', async () => {
  const instance = await openInstance()
  const { vmId } = await running(instance)
  const other = await running(instance)
  await instance.stopVM(vmId, { graceful: false })
  for (const socket of [other.qmpSocketPath, '/run/none.sock', '']) {
    expect(await rejection(instance.attachToRunningVM(vmId, socket))).toMatchObject({ name: 'LifecycleError', code: 'QMP_ERROR', vmId })
  }
  expect(instance.getActiveVMs()).toEqual([other.vmId])
})

test('a machine that is off, or none, has nothing to attach to', async () => {
  const instance = await openInstance()
  const { vmId, qmpSocketPath } = await running(instance)
  await instance.stopVM(vmId, { graceful: false })
  expect(await rejection(instance.attachToRunningVM(vmId, qmpSocketPath))).toMatchObject({ code: 'QMP_ERROR', vmId })
  expect(await rejection(instance.attachToRunningVM('no-such-vm', qmpSocketPath))).toMatchObject({ code: 'VM_NOT_FOUND' })
  expect(instance.getEventHandler().isAttached(vmId)).toBe(false)
})
