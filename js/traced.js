'use strict'

// Errors that native code asks for have no JavaScript frames. This puts the methods of a native
// class, static ones too, on the class that extends it, each with a stack that leads to its caller
// and, where it answers with a promise, a promise of the caller's own realm. `retold` may make
// another error of what is thrown.
function traced (Class, retold = (error) => error) {
  copy(Object.getPrototypeOf(Class.prototype), Class.prototype, retold)
  copy(Object.getPrototypeOf(Class), Class, retold)
  return Class
}

function copy (native, target, retold) {
  for (const name of Object.getOwnPropertyNames(native)) {
    if (name === 'constructor' || Object.hasOwn(target, name)) continue
    if (typeof native[name] !== 'function') continue
    const value = withStack(native[name], name, retold)
    Object.defineProperty(target, name, { value, writable: true, configurable: true })
  }
}

function withStack (method, name, retold) {
  const wrapper = function (...args) {
    const at = {}
    Error.captureStackTrace(at, wrapper)
    try {
      const result = Reflect.apply(method, this, args)
      if (typeof result?.then !== 'function') return result
      return Promise.resolve(result).catch((error) => { throw retell(retold(error), at) })
    } catch (error) {
      throw retell(retold(error), at)
    }
  }
  Object.defineProperty(wrapper, 'name', { value: name, configurable: true })
  Object.defineProperty(wrapper, 'length', { value: method.length, configurable: true })
  return wrapper
}

function retell (error, at) {
  if (typeof (error?.cause?.code ?? error?.code) === 'string') {
    const frames = at.stack.slice(at.stack.indexOf('\n'))
    error.stack = `${error.name}: ${error.message}${frames}`
  }
  return error
}

// A function of the native module, in the same way.
const tracedFunction = (native, name) => withStack(native[name], name, (error) => error)

module.exports = { traced, tracedFunction }
