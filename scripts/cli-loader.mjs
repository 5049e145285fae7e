// The build copies this file to dist/cli.js. It loads the script dist/cli.cjs with V8's code cache. Node 20 needs this
// file for that: only Node 22 and later have module.enableCompileCache. The build writes a cache for its own version of
// Node. On another version, the first command writes one if it may write to this folder. V8 rejects a cache that does
// not fit, and compiles the source.
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

const require = createRequire(import.meta.url);
const {
  accessSync,
  chmodSync,
  constants,
  existsSync,
  readFileSync,
  renameSync,
  rmSync,
  writeFileSync,
} = require("node:fs");
const { dirname } = require("node:path");
const { Script } = require("node:vm");

const filename = fileURLToPath(new URL("cli.cjs", import.meta.url));
// The build replaces BUILD with a digest of the script, because V8 compares only the length of the source.
const cache = `${filename}.BUILD-${process.version}-${process.arch}.cache`;
const parameters = "exports, require, module, __filename, __dirname, __import, __importMetaUrl";
// The bundler writes only ASCII, which Node reads faster as Latin-1 than as UTF-8.
const source = `(function (${parameters}) {${readFileSync(filename, "latin1")}\n})`;

const script = new Script(source, { filename, cachedData: readCache() });

const module = { exports: {} };
script.runInThisContext()(
  module.exports,
  createRequire(filename),
  module,
  filename,
  dirname(filename),
  (specifier) => import(specifier),
  import.meta.url,
);
export const { COMMANDS } = module.exports;

export async function main(args) {
  // A cache written after help, the version or a completion would lack most of the code that other commands use.
  const [first = "help"] = args;
  const isHelp =
    ["help", "autocomplete", "completion"].includes(first) ||
    first.startsWith("-") ||
    args.some((arg) => arg === "-h" || arg === "--help");
  if (!isHelp) process.once("exit", addCache);
  await module.exports.main(args);
}

function readCache() {
  try {
    return readFileSync(cache);
  } catch {
    return undefined; // without a cache, the start is only slower
  }
}

/** Writes the code that V8 has compiled so far, if there is no cache. Other processes may do so at the same time. */
function addCache() {
  const draft = `${cache}.${process.pid}`;
  if (existsSync(cache) || !isWritable(dirname(cache))) return;
  try {
    writeFileSync(draft, script.createCachedData(), { flag: "wx" });
    chmodSync(draft, 0o644); // for every user who may read the script
    renameSync(draft, cache);
  } catch {
    rmSync(draft, { force: true }); // for example, the disk is full
  }
}

function isWritable(folder) {
  try {
    accessSync(folder, constants.W_OK);
    return true;
  } catch {
    return false;
  }
}
