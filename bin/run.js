#!/usr/bin/env node
// Check the version of Node before loading anything else. On an older version, newer syntax in a dependency would
// otherwise fail with a stack trace.
const [major = 0, minor = 0] = process.versions.node.split(".").map(Number);
if (major < 20 || (major === 20 && minor < 19) || major === 21 || (major === 22 && minor < 12)) {
  const message = `copilotfleet needs Node.js 20.19 or later, or 22.12 or later; this is ${process.versions.node}.`;
  if (process.argv.includes("--json")) {
    const error = { code: "FLEET_PLATFORM_UNSUPPORTED", message, suggestions: ["Install a supported Node.js."] };
    process.stdout.write(`${JSON.stringify({ error })}\n`);
  } else process.stderr.write(`Error: ${message} [FLEET_PLATFORM_UNSUPPORTED]\n  Hint: Install a supported Node.js.\n`);
  process.exitCode = 3;
} else {
  const { main } = await import("../dist/cli.js");
  await main(process.argv.slice(2));
}
