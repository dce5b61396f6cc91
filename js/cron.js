'use strict'

// Cron expressions in the host's local time, and the timers of schedules that bring no adapter of their
// own. Five fields: minute, hour, day of the month, month, day of the week (0 and 7 are Sunday), each of
// them *, numbers, ranges, lists and steps; months and days also by name. As in crontab(5), where both days
// are restricted either one suffices.
//
// When clocks go forward, a time that does not exist that day is left out; when they go back, a time
// that comes twice counts once, unless the hour is *.

const FIELDS = [
  { name: 'minute', from: 0, to: 59 },
  { name: 'hour', from: 0, to: 23 },
  { name: 'day of the month', from: 1, to: 31 },
  { name: 'month', from: 1, to: 12, words: ['jan', 'feb', 'mar', 'apr', 'may', 'jun', 'jul', 'aug', 'sep', 'oct', 'nov', 'dec'] },
  { name: 'day of the week', from: 0, to: 7, words: ['sun', 'mon', 'tue', 'wed', 'thu', 'fri', 'sat'] }
]

const NICKNAMES = {
  '@hourly': '0 * * * *',
  '@daily': '0 0 * * *',
  '@midnight': '0 0 * * *',
  '@weekly': '0 0 * * 0',
  '@monthly': '0 0 1 * *',
  '@yearly': '0 0 1 1 *',
  '@annually': '0 0 1 1 *'
}

// A leap day comes again within eight years, and on the same day of the week within forty.
const FARTHEST_YEARS = 41

function parse (expression) {
  const text = String(expression).trim().toLowerCase()
  const parts = (NICKNAMES[text] ?? text).split(/\s+/)
  if (parts.length !== 5) throw new RangeError(`'${expression}' has ${parts.length} fields, not 5`)
  const [minutes, hours, days, months, weekdays] = parts.map((part, n) => parseField(part, FIELDS[n]))
  if (weekdays.has(7)) weekdays.add(0)
  return {
    minutes, hours, days, months, weekdays, everyHour: parts[1].startsWith('*'), eitherDay: !parts[2].startsWith('*') && !parts[4].startsWith('*')
  }
}

function parseField (text, field) {
  const values = new Set()
  for (const part of text.split(',')) {
    const match = /^(?:\*|(\w+)(?:-(\w+))?)(?:\/(\d+))?$/.exec(part)
    if (!match) throw new RangeError(`'${part}' is no ${field.name}`)
    const [, first, last, step] = match
    const from = first === undefined ? field.from : number(first, field)
    // crontab(5): '5/10' is '5-59/10'.
    const to = last !== undefined ? number(last, field) : first === undefined || step !== undefined ? field.to : from
    const by = step === undefined ? 1 : Number(step)
    if (by === 0 || to < from) throw new RangeError(`'${part}' is no ${field.name}`)
    for (let value = from; value <= to; value += by) values.add(value)
  }
  return values
}

function number (text, { name, from, to, words = [] }) {
  const word = words.indexOf(text)
  const value = word >= 0 ? word + (name === 'month' ? 1 : 0) : /^\d+$/.test(text) ? Number(text) : NaN
  if (!(value >= from && value <= to)) throw new RangeError(`'${text}' is no ${name}`)
  return value
}

// The first moment after `after` that fits, or undefined if none ever does (30 February).
function nextRun (cron, after) {
  const at = new Date(after)
  at.setSeconds(60, 0)
  const last = at.getFullYear() + FARTHEST_YEARS
  while (at.getFullYear() <= last) {
    if (!cron.months.has(at.getMonth() + 1)) {
      at.setMonth(at.getMonth() + 1, 1)
      at.setHours(0, 0, 0, 0)
    } else if (!isDay(cron, at)) {
      at.setDate(at.getDate() + 1)
      at.setHours(0, 0, 0, 0)
    } else if (!cron.hours.has(at.getHours()) || !cron.minutes.has(at.getMinutes()) || isSecondTime(cron, at, after)) {
      // By the clock of physics: an hour that comes twice is seen twice, one that is skipped never.
      at.setTime(at.getTime() + 60_000)
    } else {
      return at
    }
  }
  return undefined
}

function isDay ({ days, weekdays, eitherDay }, at) {
  const [day, weekday] = [days.has(at.getDate()), weekdays.has(at.getDay())]
  return eitherDay ? day || weekday : day && weekday
}

const wallClock = (date) => Date.UTC(date.getFullYear(), date.getMonth(), date.getDate(), date.getHours(), date.getMinutes())

const isSecondTime = ({ everyHour }, at, after) => !everyHour && wallClock(at) <= wallClock(after)

// A timer knows nothing of a clock that is set or a host that sleeps. So it is looked at each minute.
const LONGEST_TIMER = 60_000

// A ScheduleAdapter on this process' timers. They do not keep the process alive.
class TimerAdapter {
  schedule (expression, callback) {
    const cron = parse(expression)
    let next = nextRun(cron, new Date())
    if (next === undefined) throw new RangeError(`'${expression}' never comes`)
    let timer
    const wait = () => {
      timer = setTimeout(run, Math.min(Math.max(next - Date.now(), 0), LONGEST_TIMER))
      timer.unref()
    }
    const run = () => {
      // A timer may be a little early, or one of many.
      if (Date.now() < next) return wait()
      next = nextRun(cron, new Date())
      wait()
      callback()
    }
    wait()
    return {
      stop () { clearTimeout(timer) },
      getNextRunDate () { return next.toISOString() }
    }
  }
}

module.exports = { TimerAdapter, nextRun, parse }
