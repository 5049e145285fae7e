import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { KEY_CLASSES } from "../../src/config/load/guarded.js";

const PAGE = readFileSync(new URL("../../docs/configuration.md", import.meta.url), "utf8");

describe("docs/configuration.md", () => {
  it.each([...KEY_CLASSES])(
    "docs/configuration.md lists the key %s, with a star only if a project file needs the user's trust to set it",
    (name, keyClass) => {
      const [, limit] = /^limits\.(?:default|total)\.(.*)$/.exec(name) ?? [];
      expect(PAGE).toContain(`\`${limit ?? name}\``);
      if (limit === undefined) expect(PAGE.includes(`\`${name}\`*`)).toBe(keyClass !== "open");
    },
  );
});
