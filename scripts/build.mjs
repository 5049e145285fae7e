// Builds dist/: one ESM bundle split by command (start-up time is a feature), the type declarations, and the
// oclif manifest that lets a command start without reading the others.
import { execFile } from "node:child_process";
import { readdir, readFile, rm, writeFile } from "node:fs/promises";
import { builtinModules } from "node:module";
import { dirname } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { build } from "esbuild";

const root = fileURLToPath(new URL("..", import.meta.url));
const run = promisify(execFile);

/**
 * `@oclif/core` requires all of its parts at once, help and plug-in discovery included: about a third of the start-up
 * time of a short command. TypeScript emits each require as `const name_1 = require("x")` and every use as `name_1.y`,
 * so each can be turned into a getter that loads on first use.
 */
const lazyOclif = {
  name: "lazy-oclif",
  setup(builder) {
    builder.onLoad({ namespace: "file", filter: /@oclif[\\/]core[\\/]lib[\\/].*\.js$/ }, async ({ path }) => {
      const source = await readFile(path, "utf8");
      const requires = [];
      let contents = source.replace(
        /^const (\w+_\d+) = ((?:__importDefault|__importStar)\()?require\((["'][^"']+["'])\)(\))?;$/gm,
        (_, name, wrapper = "", id, close = "") => {
          requires.push({ name, expression: `${wrapper}require(${id})${close}` });
          return "";
        },
      );
      for (const { name } of requires) contents = contents.replace(new RegExp(`\\b${name}\\b`, "g"), `(${name}())`);
      const getters = requires.map(
        ({ name, expression }) => `let ${name}_loaded; const ${name} = () => (${name}_loaded ??= ${expression});`,
      );
      return { contents: contents.replace(/^("use strict";)?/, `$1${getters.join("")}`), loader: "js" };
    });
  },
};

/**
 * Imports of Node's own modules become requires: an ESM import makes a copy of all their exports first, which for
 * `fs`, `net` and the like adds up to several milliseconds.
 */
const requireBuiltins = {
  name: "require-builtins",
  setup(builder) {
    const names = new Set(builtinModules);
    builder.onResolve({ filter: /^(node:)?[a-z_/]+$/ }, ({ path, kind, namespace }) => {
      const name = path.replace(/^node:/, "");
      if (kind !== "import-statement" || namespace === "builtin" || !names.has(name)) return undefined;
      return { path: name, namespace: "builtin", sideEffects: false };
    });
    builder.onLoad({ filter: /.*/, namespace: "builtin" }, ({ path }) => ({
      contents: `module.exports = require("node:${path}");`,
    }));
  },
};

/** Debug output of oclif costs 3 ms to prepare even when nobody asked for it: it is loaded if `DEBUG` is set. */
const debugOnDemand = {
  name: "debug-on-demand",
  setup(builder) {
    builder.onResolve({ filter: /^debug$/ }, ({ importer, namespace }) =>
      namespace === "debug" || !importer.includes("oclif") ? undefined : { path: importer, namespace: "debug" },
    );
    builder.onLoad({ filter: /.*/, namespace: "debug" }, ({ path }) => ({
      contents: `module.exports = process.env.DEBUG ? require("debug") : () => Object.assign(() => {}, { extend: module.exports });`,
      resolveDir: dirname(path),
    }));
  },
};

const commands = (await readdir(`${root}/src/commands`, { recursive: true })).filter((file) => file.endsWith(".ts"));

await rm(`${root}/dist`, { recursive: true, force: true });
const declarations = run("npx", ["--no-install", "tsc", "-p", "tsconfig.build.json"], { cwd: root });
await build({
  absWorkingDir: root,
  entryPoints: ["src/main.ts", "src/index.ts", ...commands.map((file) => `src/commands/${file}`)],
  outbase: "src",
  outdir: "dist",
  bundle: true,
  splitting: true,
  // Parsing is a good part of a short command's time. `NODE_OPTIONS=--enable-source-maps` gives readable stack traces.
  minify: true,
  sourcemap: "linked",
  sourcesContent: false,
  format: "esm",
  platform: "node",
  target: "node20",
  chunkNames: "chunks/[name]-[hash]",
  legalComments: "linked",
  // The SDK is resolved at run time, beside its native runtime. typescript and ejs are optional parts of oclif that an
  // installed command never uses.
  external: ["@github/copilot-sdk", "typescript", "ejs"],
  plugins: [lazyOclif, requireBuiltins, debugOnDemand],
  banner: {
    js: 'import{createRequire as __createRequire}from"node:module";import{fileURLToPath as __toPath}from"node:url";const require=__createRequire(import.meta.url),__filename=__toPath(import.meta.url),__dirname=__toPath(new URL(".",import.meta.url));',
  },
});
await declarations.catch(({ stdout }) => {
  process.stderr.write(stdout);
  process.exit(1);
});

// The manifest is written by oclif itself, from the commands just built.
const { Plugin } = await import("@oclif/core");
const plugin = new Plugin({ root, ignoreManifest: true, errorOnManifestCreate: true, respectNoCacheDefault: true });
await rm(`${root}/oclif.manifest.json`, { force: true });
await plugin.load();
await writeFile(`${root}/oclif.manifest.json`, `${JSON.stringify(plugin.manifest, null, 2)}\n`);
