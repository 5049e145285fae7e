#!/usr/bin/env node
// Builds and runs the command. This file is for development only and not part of the package.
import "../scripts/build.mjs";

await import("./run.js");
