'use strict'

// The user's own database objects, as the native side asks them: one JSON text in, one out. What is
// asked and what an answer means is decided there; here the calls are made, each as a method of its
// owner. The functions never throw and never reject: what was thrown is told as plain facts.

// Of a Prisma client. It is called by name and never looked into, for it may be an extended one.
const prismaPort = (client) => portTo((request) => {
  if (request.absent) return request.absent.filter((path) => !isMethod(client, path.split('.')))
  if (request.transaction) return inTransaction(client, request.transaction)
  return query(client, request)
})

// Of an object with the 16 operations.
const adapterPort = (adapter) => portTo(({ absent, method, args }) => {
  if (absent) return absent.filter((name) => !isMethod(adapter, [name]))
  if (!isMethod(adapter, [method])) throw new MissingMethod(`databaseAdapter.${method}`)
  return adapter[method](...args)
})

class MissingMethod extends Error {
  constructor (path) {
    super(`there is no ${path}()`)
    this.name = 'MissingMethod'
    this.details = { missing: [path] }
  }
}

function isMethod (owner, path) {
  return typeof path.reduce((value, name) => value?.[name], owner) === 'function'
}

function query (client, { model, operation, args }) {
  if (!isMethod(client, [model, operation])) throw new MissingMethod(`${model}.${operation}`)
  return client[model][operation](args)
}

async function inTransaction (client, steps) {
  if (!isMethod(client, ['$transaction'])) throw new MissingMethod('$transaction')
  return client.$transaction(async (within) => {
    const answers = []
    for (const step of steps) {
      if (step.given && !holds(step.given, answers.at(-1))) continue
      if (step.optional && !isMethod(within, [step.model, step.operation])) continue
      answers.push(await query(within, step))
    }
    return answers
  })
}

// Whether the last answer is what a step is for: `is` has members of it, and at the path `texts` there is a
// list of texts, or nothing.
function holds ({ is, texts }, row) {
  const list = texts?.reduce((value, name) => value?.[name], row) ?? []
  return Object.entries(is).every(([name, value]) => row?.[name] === value) &&
    Array.isArray(list) && list.every((it) => typeof it === 'string')
}

function portTo (ask) {
  return async (text) => {
    let answer
    try {
      answer = await ask(JSON.parse(text))
    } catch (thrown) {
      return describe(thrown)
    }
    return written(answer)
  }
}

function written (answer) {
  try {
    return JSON.stringify({ ok: answer ?? null }, plain)
  } catch {
    return described({ name: 'UnreadableAnswer', message: 'the answer is not plain data' })
  }
}

// A BigInt that a number cannot hold becomes its text. Dates and Decimals have their own `toJSON`.
function plain (key, value) {
  if (typeof value !== 'bigint') return value
  return Number.isSafeInteger(Number(value)) ? Number(value) : value.toString()
}

const described = (facts) => JSON.stringify({ error: facts }, plain)

// Getters may throw, and anything may be thrown.
function describe (thrown) {
  try {
    const { name, message } = Object(thrown)
    return described({
      name: text(name) ?? 'Error',
      code: codeOf(thrown),
      message: text(message) || (typeof thrown === 'object' ? 'no message' : String(thrown)),
      details: detailsOf(thrown)
    })
  } catch {
    return described({ name: 'Error', message: 'an error that cannot be read' })
  }
}

const text = (value) => typeof value === 'string' ? value : undefined

// Its own code, or that of what caused it: drivers and `fetch` put theirs there.
function codeOf (thrown) {
  for (const it of [thrown, thrown?.cause]) {
    const code = text(it?.code) ?? text(it?.errorCode) ?? text(it?.kind)
    if (code) return code
  }
}

// Of ours and of Prisma's errors. Theirs may hold anything.
function detailsOf (thrown) {
  try {
    return JSON.parse(JSON.stringify(thrown?.details ?? thrown?.meta ?? null, plain))
  } catch {
    return null
  }
}

module.exports = { adapterPort, prismaPort }
