// Becomes dist/cli.js. Loads the command line, which is one script, with V8's code cache. Node 22 and later can do this
// with module.enableCompileCache. If another version of V8 made the cache, V8 rejects it and compiles the source.
import { createRequire } from "node:module";
import { fileURLToPath } from "node:url";

const require = createRequire(import.meta.url);
const { readFileSync } = require("node:fs");
const { dirname } = require("node:path");
const { Script } = require("node:vm");

const filename = fileURLToPath(new URL("cli.cjs", import.meta.url));
const parameters = "exports, require, module, __filename, __dirname, __import, __importMetaUrl";
// The bundler writes ASCII alone, which is read faster as Latin-1 than as UTF-8.
const source = `(function (${parameters}) {${readFileSync(filename, "latin1")}\n})`;

export const script = new Script(source, { filename, cachedData: readCache() });

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
export const { COMMANDS, main } = module.exports;

function readCache() {
  try {
    return readFileSync(`${filename}.cache`);
  } catch {
    return undefined; // without a cache, the start is only slower
  }
}
