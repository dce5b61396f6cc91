'use strict'
const { cleanUp } = require('../kit')
const { play } = require('./scenario')
const { sqliteWorld } = require('./worlds')
afterEach(cleanUp)
test('x', async () => {
  const t = await play(await sqliteWorld())
  require('fs').writeFileSync('/var/tmp/pg-transcript.txt', t.map((l) => JSON.stringify(l)).join('\n'))
})
