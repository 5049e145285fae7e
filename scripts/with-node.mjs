// Runs a command on another version of Node.js: node scripts/with-node.mjs 22 COMMAND… If COMMAND is missing or begins
// with a hyphen, runs `vitest run COMMAND…`. npm installs each version once into a cache folder. In the command,
// `node` and `process.execPath` are that version.
import { delimiter, join } from "node:path";
import { installOnce, runWith } from "./install-once.mjs";

/** The full version for each major number. npm has them as versions of the package `node-<platform>-<arch>`. */
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
