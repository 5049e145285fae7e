#!/usr/bin/env node
// Builds, then runs: for development only, not part of the package.
import "../scripts/build.mjs";

await import("./run.js");
