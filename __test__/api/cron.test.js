'use strict'

const { TimerAdapter, nextRun, parse } = require('../../js/cron')
const { runNode } = require('../kit')

const at = (...parts) => new Date(...parts)
const after = (expression, from) => nextRun(parse(expression), from)

test.each([
  ['* * * * *', at(2026, 0, 1, 10, 0, 30), at(2026, 0, 1, 10, 1)],
  ['0 2 * * *', at(2026, 0, 1, 2, 0), at(2026, 0, 2, 2, 0)],
  ['*/15 9-17 * * mon-fri', at(2026, 0, 2, 17, 50), at(2026, 0, 5, 9, 0)],
  ['30 4 1,15 * *', at(2026, 0, 15, 5, 0), at(2026, 1, 1, 4, 30)],
  ['0 0 13 * 5', at(2026, 0, 1), at(2026, 0, 2)],
  ['0 0 * * 7', at(2026, 0, 1), at(2026, 0, 4)],
  ['0 0 29 2 *', at(2026, 0, 1), at(2028, 1, 29)],
  ['0 0 29 2 */7', at(2032, 1, 29), at(2060, 1, 29)],
  ['0 0 29 2 */7', at(2088, 1, 29), at(2128, 1, 29)],
  ['5/20 0 * * *', at(2026, 0, 1, 0, 6), at(2026, 0, 1, 0, 25)],
  ['0 12 31 JAN,dec *', at(2026, 1, 1), at(2026, 11, 31, 12, 0)],
  ['@weekly', at(2026, 0, 1), at(2026, 0, 4)],
  ['59 23 31 12 *', at(2026, 11, 31, 23, 59), at(2027, 11, 31, 23, 59)]
])('%s after %s', (expression, from, expected) => {
  expect(after(expression, from)).toEqual(expected)
})

test('a day that never comes', () => {
  expect(after('0 0 30 2 *', at(2026, 0, 1))).toBe(undefined)
  expect(() => new TimerAdapter().schedule('0 0 30 2 *', () => {})).toThrow(/never comes/)
})

test.each(['', '* * * *', '* * * * * *', '60 * * * *', '* 24 * * *', '* * 0 * *', '* * * 13 *', '* * * * 8', '5-1 * * * *', '*/0 * * * *', 'a * * * *', '1,,2 * * * *', '@often'])('%p is refused', (expression) => {
  expect(() => parse(expression)).toThrow(RangeError)
})

test('clocks that change: what is skipped is left out, what comes twice counts once', async () => {
  const { stdout } = await runNode(`
    process.env.TZ = 'Europe/Berlin'
    const { nextRun, parse } = require('./js/cron')
    const show = (expression, from) => nextRun(parse(expression), new Date(from)).toISOString()
    console.log(JSON.stringify([
      show('30 2 * * *', '2026-03-28T12:00:00Z'),
      show('30 2 * * *', '2026-10-24T12:00:00Z'),
      show('30 2 * * *', '2026-10-25T00:30:00Z'),
      show('*/30 * * * *', '2026-10-25T00:30:00Z')
    ]))
  `)
  expect(JSON.parse(stdout)).toEqual([
    '2026-03-30T00:30:00.000Z', '2026-10-25T00:30:00.000Z', '2026-10-26T01:30:00.000Z', '2026-10-25T01:00:00.000Z'
  ])
})

test('the timers tick, go on, stop, and keep no process alive', async () => {
  jest.useFakeTimers({ now: at(2026, 0, 1, 10, 0, 30) })
  try {
    let ticks = 0
    const job = new TimerAdapter().schedule('0 * * * *', () => { ticks++ })
    expect(job.getNextRunDate()).toBe(at(2026, 0, 1, 11).toISOString())
    jest.advanceTimersByTime(3 * 3_600_000)
    expect(ticks).toBe(3)
    expect(job.getNextRunDate()).toBe(at(2026, 0, 1, 14).toISOString())
    job.stop()
    jest.advanceTimersByTime(10 * 3_600_000)
    expect(ticks).toBe(3)
    const far = new TimerAdapter().schedule('0 0 5 2 *', () => { ticks++ })
    jest.advanceTimersByTime(33 * 24 * 3_600_000)
    expect(ticks).toBe(3)
    jest.advanceTimersByTime(2 * 24 * 3_600_000)
    expect(ticks).toBe(4)
    far.stop()
    const daily = new TimerAdapter().schedule('0 2 * * *', () => { ticks++ })
    jest.setSystemTime(at(2026, 2, 1, 2, 1))
    jest.advanceTimersByTime(60_000)
    expect(ticks).toBe(5)
    expect(daily.getNextRunDate()).toBe(at(2026, 2, 2, 2).toISOString())
    daily.stop()
  } finally {
    jest.useRealTimers()
  }
  const { code } = await runNode("new (require('./js/cron').TimerAdapter)().schedule('* * * * *', () => {})")
  expect(code).toBe(0)
})
