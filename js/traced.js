'use strict'

// Errors that native code asks for have no JavaScript frames. This puts the methods of a native
// class on the prototype of the class that extends it, each with a stack that leads to its caller
// and, where it answers with a promise, a promise of the caller's own realm.
function traced (Class) {
  const native = Object.getPrototypeOf(Class.prototype)
  for (const name of Object.getOwnPropertyNames(native)) {
    if (name === 'constructor' || Object.hasOwn(Class.prototype, name)) continue
    const value = withStack(native[name], name)
    Object.defineProperty(Class.prototype, name, { value, writable: true, configurable: true })
  }
  return Class
}

function withStack (method, name) {
  const wrapper = function (...args) {
    const at = {}
    Error.captureStackTrace(at, wrapper)
    try {
      const result = Reflect.apply(method, this, args)
      if (typeof result?.then !== 'function') return result
      return Promise.resolve(result).catch((error) => { throw retell(error, at) })
    } catch (error) {
      throw retell(error, at)
    }
  }
  Object.defineProperty(wrapper, 'name', { value: name, configurable: true })
  Object.defineProperty(wrapper, 'length', { value: method.length, configurable: true })
  return wrapper
}

function retell (error, at) {
  if (typeof error?.code === 'string') {
    const frames = at.stack.slice(at.stack.indexOf('\n'))
    error.stack = `${error.name}: ${error.message}${frames}`
  }
  return error
}

module.exports = { traced }
