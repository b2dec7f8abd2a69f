"use strict";
// Where the data's script puts its string of JSON; nothing in a string is run.

const reportData = Object.create(null);
const store = { clipFailures: new Map() };
