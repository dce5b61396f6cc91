'use strict'

const { abortable } = require('./abort')
const native = require('./native')
const { traced } = require('./traced')

// What of a command that failed everybody may want; its `code` is the command's own. The library's, and
// the class that goes with it, are the cause's. It is a class for its name alone, and not exported.
class CommandExecutionError extends Error {
  constructor (cause) {
    super(cause.message, { cause })
    this.name = 'CommandExecutionError'
    const { exitCode = null, signal = null, stdout = '', stderr = '', timedOut = false } = cause.context ?? {}
    Object.assign(this, { code: exitCode, signal, stdout, stderr, timedOut })
  }
}

// A call that makes no sense, and one that was aborted, tell nothing of a command.
const ofTheCall = ['INVALID_CONFIG', 'ABORTED']
const retold = (error) => ofTheCall.includes(error.code) ? error : new CommandExecutionError(error)

const Executor = traced(class extends native.CommandExecutor {}, retold)

class CommandExecutor extends Executor {
  async execute (command, args, options) {
    const output = await abortable(options, (rest, cancellation) => super.execute(command, args, rest, cancellation))
    return output.toString()
  }
}

module.exports = { CommandExecutor }
