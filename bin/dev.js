#!/usr/bin/env -S node --import tsx
// Runs the command line straight from src/, without a build: for development only, not part of the package.
process.env.NODE_ENV = "development";
await import("../src/main.ts");
