import { invalidArchive } from "./manifest.js";

/*
 * The small part of the format of `tar` (POSIX.1-1988, ustar) that archives need: regular files with fixed names,
 * owners and times. The name and the size of an entry determine its complete header. So a reader compares whole
 * headers, and there is nothing to misinterpret: no links, devices, extensions or second names.
 */

export const BLOCK = 512;
/** An archive ends with two empty blocks. */
export const END = Buffer.alloc(2 * BLOCK);

export const MANIFEST_NAME = "manifest.json";
const NAME_BYTES = 100;
const SIZE = { at: 124, length: 12 };
const TYPE = 156;
const CHECKSUM = { at: 148, length: 8 };

const TYPES: Readonly<Record<string, string>> = {
  "1": "a hard link",
  "2": "a symbolic link",
  "3": "a device",
  "4": "a device",
  "5": "a folder",
  "6": "a pipe",
};

/**
 * The name of a file's entry. If the path is too long for a header, the name contains `index`, the file's position in
 * the manifest.
 */
export function entryName(path: string, index: number): string {
  const name = `session/${path}`;
  return Buffer.byteLength(name) <= NAME_BYTES ? name : `long/${index}`;
}

export function headerOf(name: string, bytes: number): Buffer {
  const header = Buffer.alloc(BLOCK);
  header.write(name, 0, NAME_BYTES, "utf8");
  header.write("0000600\0", 100, "latin1");
  header.write("0000000\0", 108, "latin1");
  header.write("0000000\0", 116, "latin1");
  header.write(`${bytes.toString(8).padStart(SIZE.length - 1, "0")}\0`, SIZE.at, "latin1");
  header.write("00000000000\0", 136, "latin1");
  header.fill(" ", CHECKSUM.at, CHECKSUM.at + CHECKSUM.length, "latin1");
  header.write("0", TYPE, "latin1");
  header.write("ustar\x0000", 257, "latin1");
  const sum = header.reduce((total, byte) => total + byte, 0);
  header.write(`${sum.toString(8).padStart(6, "0")}\0 `, CHECKSUM.at, "latin1");
  return header;
}

/** How many zeros follow an entry of this size. */
export function padding(bytes: number): number {
  return (BLOCK - (bytes % BLOCK)) % BLOCK;
}

/** The size that a header gives; NaN if it is not a number. {@link checkHeader} checks the rest of the header. */
export function sizeIn(header: Buffer): number {
  const digits = header.toString("latin1", SIZE.at, SIZE.at + SIZE.length - 1);
  return /^[0-7]{11}$/.test(digits) ? Number.parseInt(digits, 8) : Number.NaN;
}

/** @throws FleetError `FLEET_USAGE_INVALID` when the header is not exactly that of this entry */
export function checkHeader(header: Buffer, name: string, bytes: number): void {
  if (header.equals(headerOf(name, bytes))) return;
  const type = TYPES[String.fromCharCode(header[TYPE] ?? 0)];
  if (type !== undefined) throw invalidArchive(`it contains ${type}`);
  throw invalidArchive("an entry differs from the manifest, or is not where the manifest lists it");
}
