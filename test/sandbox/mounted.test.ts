import { expect, it } from "vitest";
import { identityText } from "../../src/sandbox/mounted.js";

it("identityText shows an inode above 2^63, as on GlusterFS, without a sign, as stat does", () => {
  const inode = 2n ** 63n + 5n;
  expect(identityText({ dev: 7n, ino: BigInt.asIntN(64, inode) })).toBe(`7 ${inode}`);
});
