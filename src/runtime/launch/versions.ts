import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseObject } from "../../config/values/json.js";
import { ifThere } from "../files/if-there.js";

interface Package {
  name: string | null;
  version: string | null;
}

/** The version of this package; "unknown" if another package contains a copy of its code. */
export function ownVersion(): string {
  const { name, version } = packageOf(fileURLToPath(import.meta.url)) ?? {};
  return (name === "copilotfleet" ? version : null) ?? "unknown";
}

/** The version of the installed `@github/copilot-sdk`, or null if it is not installed. */
export function sdkVersion(): string | null {
  try {
    return packageVersion(createRequire(import.meta.url).resolve("@github/copilot-sdk"));
  } catch {
    return null;
  }
}

/** The version of the package that a file belongs to, or null outside a package. */
export function packageVersion(path: string): string | null {
  return packageOf(path)?.version ?? null;
}

function packageOf(path: string): Package | null {
  for (let folder = dirname(path); folder !== dirname(folder); folder = dirname(folder)) {
    const text = ifThere(() => readFileSync(join(folder, "package.json"), "utf8"));
    if (text === null) continue;
    const { name, version } = parseObject(text) ?? {};
    // Packages have further manifests without a name, such as the one that marks a folder of CommonJS files.
    if (typeof name === "string") return { name, version: typeof version === "string" ? version : null };
  }
  return null;
}
