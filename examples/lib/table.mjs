// The library's table stays when it shuts down: machines may be running. An example that made it takes
// it away again.

import { execFile } from 'node:child_process'
import { promisify } from 'node:util'

import { NftablesService } from '../../index.js'

const nft = promisify(execFile).bind(undefined, 'nft')

/** Whether the library's table is there. */
export async function tableExists () {
  const { stdout } = await nft(['list', 'tables', 'bridge'])
  return stdout.split('\n').includes('table bridge infinization')
}

/** Removes the table, unless machines of others have come to use it. */
export async function removeTable () {
  const inUse = (await new NftablesService().listChains()).some(name => name.startsWith('vm_'))
  if (!inUse && await tableExists()) await nft(['delete', 'table', 'bridge', 'infinization'])
}
