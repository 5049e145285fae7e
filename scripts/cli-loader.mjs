// Becomes dist/cli.js: loads the command line, one script, with V8's code cache, as Node itself can from version 22 on
// (module.enableCompileCache). A cache that another version of V8 made is rejected by V8, and the source compiled.
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
    return undefined; // not made (yet): only slower
  }
}
