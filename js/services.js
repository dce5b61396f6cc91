'use strict'

// The classes that work on the host without a manager.

const native = require('./native')
const { abortable } = require('./abort')
const { FirewallTranslationError } = require('./errors')
const { copying } = require('./progress')
const { withKeys } = require('./secrets')
const { traced, tracedFunction } = require('./traced')

const BridgeManager = traced(class BridgeManager extends native.BridgeManager {})

const CgroupsManager = traced(class CgroupsManager extends native.CgroupsManager {})

const DepartmentNatService = traced(class DepartmentNatService extends native.DepartmentNatService {})

const MacAddressGenerator = traced(class MacAddressGenerator extends native.MacAddressGenerator {})

const Snapshots = traced(class extends native.SnapshotManager {})

class SnapshotManager extends Snapshots {
  async createSnapshot (options) {
    return super.createSnapshot(withKeys(options, ['encryptionKey']))
  }

  async revertSnapshot (image, name, options) {
    return super.revertSnapshot(image, name, withKeys(options, ['encryptionKey']))
  }

  async deleteSnapshot (image, name, options) {
    return super.deleteSnapshot(image, name, withKeys(options, ['encryptionKey']))
  }

  async materializeSnapshot (source, name, target, options) {
    return copying(options, (rest, cancellation, progress) =>
      super.materializeSnapshot(source, name, target, withKeys(rest, ['encryptionKey']), cancellation, progress))
  }
}

const TapDeviceManager = traced(class TapDeviceManager extends native.TapDeviceManager {})

const Images = traced(class extends native.QemuImgService {})

class QemuImgService extends Images {
  async createImage (options) {
    return abortable(options, (rest, cancellation) => super.createImage(withKeys(rest, ['encryptionKey']), cancellation))
  }

  async convertImage (options) {
    return copying(options, (rest, cancellation, progress) =>
      super.convertImage(withKeys(rest, ['encryptionKey']), cancellation, progress))
  }

  async checkImage (path, format, options) {
    return abortable(options, (rest, cancellation) => super.checkImage(path, format, withKeys(rest, ['encryptionKey']), cancellation))
  }

  async resizeImage (path, newSizeGB, options) {
    return super.resizeImage(path, newSizeGB, withKeys(options, ['encryptionKey']))
  }

  async changeKey (path, options) {
    return super.changeKey(path, withKeys(options, ['encryptionKey', 'newKey']))
  }
}

// `service` is whose files they are; that is `getPersistence()`'s business.
const NftablesPersistence = traced(class NftablesPersistence extends native.NftablesPersistence {
  constructor (config = {}, service = undefined) {
    super(config, service)
  }
})

// `owner` is an instance whose settings it uses; that is `getNftablesService()`'s business.
const NftablesService = traced(class NftablesService extends native.NftablesService {
  #persistence

  constructor (config = {}, owner = undefined) {
    super(config, owner)
  }

  getPersistence () {
    this.#persistence ??= new NftablesPersistence({}, this)
    return this.#persistence
  }
})

const FirewallRuleTranslator = traced(
  class FirewallRuleTranslator extends native.FirewallRuleTranslator {},
  (error) => new FirewallTranslationError(ruleCode(error.code), error.message, error.context?.ruleId)
)

// What is no rule at all (a string, a BigInt) is refused by whoever reads arguments.
const ruleCode = (code) => code === 'INVALID_CONFIG' ? 'RULE_INVALID' : code

const generateVMChainName = tracedFunction(native, 'generateVMChainName')

const installFirewallService = tracedFunction(native, 'installFirewallService')

const firewallServiceUnit = tracedFunction(native, 'firewallServiceUnit')

module.exports = {
  BridgeManager,
  CgroupsManager,
  DepartmentNatService,
  FirewallRuleTranslator,
  MacAddressGenerator,
  NftablesPersistence,
  NftablesService,
  QemuImgService,
  SnapshotManager,
  TapDeviceManager,
  firewallServiceUnit,
  generateVMChainName,
  installFirewallService
}
