// The README's quick start: as root, `node examples/quick-start.mjs IMAGE.qcow2`.
import { BridgeManager, Infinization } from '../index.js' // yours: '@infinibay/infinization'

const bridges = new BridgeManager()
if (!await bridges.exists('vms0')) await bridges.create('vms0')

const infinization = new Infinization({ stateDir: '/var/lib/infinization' })
await infinization.initialize()
const vm = await infinization.createVM({
  vmId: 'web-1', internalName: 'web-1', name: 'Web server', os: 'Debian 12',
  cpuCores: 2, ramGB: 2, disks: [{ sizeGB: 20, backingFile: process.argv[2] }],
  bridge: 'vms0', displayType: 'vnc', displayPort: 5900,
  firewallRules: [{ id: 'http', name: 'http', action: 'ACCEPT', direction: 'IN', protocol: 'tcp', dstPortStart: 80, priority: 100 }]
})
console.log(`running as pid ${vm.pid}, display on 127.0.0.1:${vm.displayPort}`)
await infinization.shutdown() // the machine runs on; the next process finds it again
