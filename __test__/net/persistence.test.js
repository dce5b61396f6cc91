'use strict'

const { existsSync, mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } = require('node:fs')
const { tmpdir } = require('node:os')
const path = require('node:path')
const { setFlagsFromString } = require('node:v8')
const { runInNewContext } = require('node:vm')
const {
  NftablesPersistence, NftablesService, firewallServiceUnit, installFirewallService
} = require('../..')
const { cleanUp, finally_, host, rejection, unique, warning } = require('../kit')

afterEach(cleanUp)

function newDir () {
  const dir = mkdtempSync(path.join(tmpdir(), 'nft-'))
  finally_(() => rmSync(dir, { recursive: true }))
  return dir
}

const tap = 'vnet-persist0'

async function loaded (service) {
  const id = unique('persist')
  finally_(() => service.removeVMChain(id))
  await service.applyRules(id, tap, [], [], 'drop')
  return id
}

const degrade = { bridgeConntrackMode: 'degrade' }

// A service that keeps a file writes it after every change of the table, also those of later tests: the last
// time half a second after the last of them.
const kept = mkdtempSync(path.join(tmpdir(), 'nft-kept-'))
afterAll(async () => {
  const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds))
  // It does so until it is collected.
  setFlagsFromString('--expose-gc')
  const collect = runInNewContext('gc')
  for (let round = 0; round < 3; round++) {
    collect()
    await pause(200)
  }
  await pause(1500)
  rmSync(kept, { recursive: true })
})

test('what is loaded is kept where it was asked for, and comes back', async () => {
  const persistenceDir = kept
  const service = new NftablesService({ ...degrade, enablePersistence: true, persistenceDir })
  const id = await loaded(service)
  expect(await service.forcePersist()).toEqual({ success: true })
  const files = service.getPersistence()
  expect(service.getPersistence()).toBe(files)
  expect(files).toBeInstanceOf(NftablesPersistence)
  const status = await files.getStatus()
  expect(status).toMatchObject({ persistenceDir, mainFileExists: true, tableExists: true })
  expect(status.mainFileModified).toBeInstanceOf(Date)
  const filePath = path.join(persistenceDir, 'infinization.nft')
  expect(statSync(filePath).mode & 0o777).toBe(0o644)

  const before = host.run('nft', 'list', 'table', 'bridge', 'infinization')
  await service.removeVMChain(id)
  const own = new NftablesPersistence({ persistenceDir })
  const restored = await own.restoreFromDisk()
  expect(restored).toMatchObject({ success: true, rulesLoaded: expect.any(Number), timestamp: expect.any(Date) })
  expect(host.run('nft', 'list', 'table', 'bridge', 'infinization')).toBe(before)
  expect(await own.exportToDisk()).toMatchObject({ success: true, filePath, timestamp: expect.any(Date) })
  expect(await own.hasPersistenceFile()).toBe(true)
  expect(await own.removePersistenceFile()).toBe(true)
  expect(await own.removePersistenceFile()).toBe(false)
  expect(await own.restoreFromDisk()).toMatchObject({ success: false, rulesLoaded: 0, error: expect.stringContaining(filePath) })
  expect(await own.rollbackToBackup()).toHaveProperty('success', expect.any(Boolean))
})

test('nothing is kept where nobody has asked for it', async () => {
  const service = new NftablesService(degrade)
  await loaded(service)
  const told = await service.forcePersist()
  expect(told).toEqual({ success: false, error: expect.stringContaining('firewallPersistenceDir') })
  expect(existsSync('/etc/infinization')).toBe(false)
  expect((await service.getPersistence().getStatus()).persistenceDir).toBe('/etc/infinization/nftables')
})

test('none of the methods rejects', async () => {
  const files = new NftablesPersistence({ persistenceDir: 'relative' })
  warning(/the firewall's files could not be used/)
  expect(await files.exportToDisk()).toMatchObject({ success: false, error: expect.stringContaining('persistenceDir must be an absolute path') })
  expect(await files.restoreFromDisk()).toMatchObject({ success: false })
  expect(await files.hasPersistenceFile()).toBe(false)
  expect(await files.removePersistenceFile()).toBe(false)
  expect(await files.getStatus()).toMatchObject({ mainFileExists: false })
})

test('a torn file is refused and changes nothing', async () => {
  const persistenceDir = newDir()
  const files = new NftablesPersistence({ persistenceDir })
  await loaded(new NftablesService(degrade))
  const { filePath } = await files.exportToDisk()
  const before = host.run('nft', 'list', 'table', 'bridge', 'infinization')
  writeFileSync(filePath, readFileSync(filePath, 'utf8').slice(0, -10))
  expect(await files.restoreFromDisk()).toMatchObject({ success: false, error: expect.stringContaining('cut off') })
  expect(host.run('nft', 'list', 'table', 'bridge', 'infinization')).toBe(before)
})

test('clearRulesCache has the next call look at the rules, or load them', async () => {
  const service = new NftablesService(degrade)
  const id = await loaded(service)
  expect(service.clearRulesCache(id)).toBeUndefined()
  expect(await service.applyRulesIfChanged(id, tap, [], [], 'drop')).toMatchObject({ changed: expect.any(Boolean) })
  expect(await service.applyRulesIfChanged(id, tap, [], [], 'drop')).toEqual({ changed: false })
  expect(() => service.clearRulesCache('a b')).toThrow(expect.objectContaining({ code: 'INVALID_CONFIG' }))
})

test('the unit is installed, enabled, and is what is printed', async () => {
  const [persistenceDir, unitDir] = [newDir(), newDir()]
  const installed = await installFirewallService({ persistenceDir, unitDir })
  const unitFile = path.join(unitDir, 'infinization-nftables.service')
  expect(installed).toEqual({
    unitFile,
    defaultDenyFile: path.join(persistenceDir, 'default-deny.nft'),
    mainFile: path.join(persistenceDir, 'infinization.nft'),
    enabledBy: path.join(unitDir, 'sysinit.target.wants', 'infinization-nftables.service')
  })
  const follows = path.join(unitDir, 'nftables.service.wants', 'infinization-nftables.service')
  for (const link of [installed.enabledBy, follows]) {
    expect(readFileSync(link, 'utf8')).toBe(firewallServiceUnit({ persistenceDir }))
  }
  expect(await rejection(installFirewallService({ unitdir: '/x' }))).toMatchObject({
    code: 'INVALID_CONFIG', context: { issues: [{ path: 'unitdir' }] }
  })
})

test('without an instance nobody knows which chains are orphans', async () => {
  expect(await rejection(new NftablesService(degrade).listOrphanedChains())).toMatchObject({ code: 'INVALID_STATE' })
})
