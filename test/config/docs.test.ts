import { readFileSync } from "node:fs";
import { describe, expect, it } from "vitest";
import { KEY_CLASSES } from "../../src/config/load/guarded.js";

const PAGE = readFileSync(new URL("../../docs/configuration.md", import.meta.url), "utf8");

describe("docs/configuration.md", () => {
  it.each([...KEY_CLASSES])("configuration.md names %s, with a star if it is guarded", (name, keyClass) => {
    const [, limit] = /^limits\.(?:default|total)\.(.*)$/.exec(name) ?? [];
    expect(PAGE).toContain(`\`${limit ?? name}\``);
    if (limit === undefined) expect(PAGE.includes(`\`${name}\`*`)).toBe(keyClass !== "open");
  });
});
