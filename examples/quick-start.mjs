// The README's quick start, to be run in a clone, as root:
//   node examples/quick-start.mjs "$PWD/.guest/tiny.qcow2"
import { BridgeManager, Infinization } from '../index.js' // in your own project: '@infinibay/infinization'
const bridges = new BridgeManager()
if (!await bridges.exists('vms0')) await bridges.create('vms0')
const infinization = new Infinization()
await infinization.initialize()
const vm = await infinization.createVM({
  vmId: 'web-1', internalName: 'web-1', name: 'Web server', os: 'Debian 12', cpuCores: 1, ramGB: 0.5,
  disks: [{ sizeGB: 20, backingFile: process.argv[2] }], bridge: 'vms0', displayType: 'vnc', displayPort: 5900
})
console.log(`running as pid ${vm.pid}, VNC on 127.0.0.1:${vm.displayPort}`)
