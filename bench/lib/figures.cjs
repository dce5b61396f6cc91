'use strict'

// Figures travel as one JSON object per line; `report.mjs` makes the table.

const figure = (name, value, unit = '', goal = '') =>
  console.log(JSON.stringify({ name, value: Math.round(value * 100) / 100, unit, goal }))

const sorted = (times) => [...times].sort((a, b) => a - b)

const median = (times) => quantile(times, 0.5)

const quantile = (times, share) => sorted(times)[Math.round((times.length - 1) * share)]

module.exports = { figure, median, quantile }
