// Builds dist/console/, the console's files, which the HTTP API serves: modules with hashed names, which browsers may
// cache for ever, and a page that refers to them. Each file is also compressed here, so that the API need not compress it.
import { mkdir, readFile, rm, writeFile } from "node:fs/promises";
import { basename, join } from "node:path";
import { fileURLToPath } from "node:url";
import { promisify } from "node:util";
import { brotliCompress, constants } from "node:zlib";
import { build } from "esbuild";

const root = fileURLToPath(new URL("..", import.meta.url));
const out = join(root, "dist", "console");
const compress = promisify(brotliCompress);

/** Writes `dist/console/NAME`, and the compressed form as `NAME.br`. */
async function write(name, content) {
  const params = { [constants.BROTLI_PARAM_QUALITY]: constants.BROTLI_MAX_QUALITY };
  await writeFile(join(out, name), content);
  await writeFile(join(out, `${name}.br`), await compress(content, { params }));
}

export async function buildConsole() {
  const { outputFiles, metafile } = await build({
    absWorkingDir: root,
    entryPoints: ["src/console/main.tsx"],
    outdir: out,
    write: false,
    metafile: true,
    bundle: true,
    minify: true,
    splitting: true,
    format: "esm",
    target: ["chrome111", "firefox115", "safari16.4"],
    charset: "utf8",
    legalComments: "none",
    tsconfig: "src/console/tsconfig.json",
    entryNames: "[name]-[hash]",
    chunkNames: "[name]-[hash]",
  });
  await rm(out, { recursive: true, force: true });
  await mkdir(out, { recursive: true });
  for (const { path, contents } of outputFiles) await write(basename(path), contents);
  const [[script, { cssBundle }]] = Object.entries(metafile.outputs).filter(([, { entryPoint }]) =>
    entryPoint?.endsWith("main.tsx"),
  );
  const page = await readFile(join(root, "src/console/index.html"), "utf8");
  await write("index.html", page.replace("main.tsx", basename(script)).replace("main.css", basename(cssBundle)));
}
