// Runs a command on another version of Node.js: node scripts/with-node.mjs 22 COMMAND… If the command begins with a hyphen or
// is missing, it consists of arguments for `vitest run`. npm installs each version once into a cache folder. Every `node` and
// every `process.execPath` of the command is that version.
import { delimiter, join } from "node:path";
import { installOnce, runWith } from "./install-once.mjs";

/** The package `node-<platform>-<arch>` has one version for each release of Node.js. These can be tried by their number alone. */
const VERSIONS = { 20: "20.20.2", 22: "22.23.3", 24: "24.21.0" };

const [wanted = "", ...rest] = process.argv.slice(2);
const version = VERSIONS[wanted] ?? wanted;
if (!/^\d+\.\d+\.\d+$/.test(version)) {
  console.error(`"${wanted}" is not a version of Node.js. Use ${Object.keys(VERSIONS).join(", ")} or a full version.`);
  process.exit(2);
}
const folder = installOnce(`node-${process.platform}-${process.arch}`, version, "node");
const command =
  rest[0] === undefined || rest[0].startsWith("-") ? ["npx", "--no-install", "vitest", "run", ...rest] : rest;
runWith({ PATH: [join(folder, "bin"), process.env.PATH].join(delimiter) }, command);
