'use strict'

// An adapter whose clock the test turns.
class Clock {
  jobs = new Set()
  next = '2099-01-01T00:00:00.000Z'
  schedule (cron, callback) {
    if (cron === 'never') throw new Error('that never comes')
    const job = { cron, callback, stop: () => this.jobs.delete(job), getNextRunDate: () => this.next }
    this.jobs.add(job)
    return job
  }

  tick () {
    for (const job of this.jobs) job.callback()
  }
}

module.exports = { Clock }
