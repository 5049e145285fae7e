import { fileURLToPath } from "node:url";
import ts from "typescript";
import { expect, it } from "vitest";

/**
 * A program that uses the library can name every type of a public signature, because the index exports each of them.
 */

const ROOT = fileURLToPath(new URL("..", import.meta.url));
const SRC = fileURLToPath(new URL("../src/", import.meta.url));
const INDEX = `${SRC}index.ts`;

/** The names in public signatures that the index does not export, each with the export that uses it. */
function unexported(): string[] {
  const path = ts.findConfigFile(ROOT, ts.sys.fileExists, "tsconfig.json") ?? "";
  const { options } = ts.parseJsonConfigFileContent(ts.readConfigFile(path, ts.sys.readFile).config, ts.sys, ROOT);
  const program = ts.createProgram([INDEX], { ...options, noEmit: true });
  const checker = program.getTypeChecker();
  const resolved = (symbol: ts.Symbol) =>
    (symbol.flags & ts.SymbolFlags.Alias) === 0 ? symbol : checker.getAliasedSymbol(symbol);
  const index = program.getSourceFile(INDEX);
  const module = index === undefined ? undefined : checker.getSymbolAtLocation(index);
  if (module === undefined) throw new Error("the index exports nothing");
  const exports = checker.getExportsOfModule(module);
  const exported = new Set(exports.map(resolved));
  // A program cannot construct a class that is exported only as a type.
  const constructible = new Set(exports.filter((symbol) => !isTypeOnly(symbol)).map(resolved));
  const missing = new Set<string>();

  const visit = (node: ts.Node, owner: string): void => {
    // Skip bodies and private members, because no signature shows them. Skip types like TokenRecord["lease"], too: a
    // program gets the field's type, and does not need the name TokenRecord.
    if (ts.isBlock(node) || isPrivate(node) || ts.isIndexedAccessTypeNode(node)) return;
    if (isOfClass(node) && !constructible.has(checker.getSymbolAtLocation(className(node)) as ts.Symbol)) return;
    if (ts.isTypeReferenceNode(node) || ts.isExpressionWithTypeArguments(node)) {
      const name = ts.isTypeReferenceNode(node) ? node.typeName : node.expression;
      const symbol = checker.getSymbolAtLocation(name);
      const target = symbol === undefined ? undefined : resolved(symbol);
      const isOurs = target?.declarations?.some((at) => at.getSourceFile().fileName.startsWith(SRC)) === true;
      const isParameter = target !== undefined && (target.flags & ts.SymbolFlags.TypeParameter) !== 0;
      if (isOurs && !isParameter && target !== undefined && !exported.has(target))
        missing.add(`${target.name} (in ${owner})`);
    }
    ts.forEachChild(node, (child) => visit(child, owner));
  };
  for (const symbol of exported) {
    for (const declaration of symbol.declarations ?? []) {
      // A program that names a type alias does not need to name the types in its definition.
      if (!ts.isTypeAliasDeclaration(declaration)) visit(declaration, symbol.name);
    }
  }
  return [...missing].sort();
}

/** Whether a program calls the node on the class itself: a constructor or a static method. */
function isOfClass(node: ts.Node): boolean {
  if (ts.isConstructorDeclaration(node)) return true;
  const modifiers = ts.isMethodDeclaration(node) ? ts.getModifiers(node) : undefined;
  return modifiers?.some(({ kind }) => kind === ts.SyntaxKind.StaticKeyword) === true;
}

function className({ parent }: ts.Node): ts.Node {
  return ts.isClassDeclaration(parent) ? (parent.name ?? parent) : parent;
}

function isTypeOnly({ declarations }: ts.Symbol): boolean {
  const [declaration] = declarations ?? [];
  return declaration !== undefined && ts.isExportSpecifier(declaration) && declaration.parent.parent.isTypeOnly;
}

function isPrivate(node: ts.Node): boolean {
  const isMember = ts.isPropertyDeclaration(node) || ts.isMethodDeclaration(node) || ts.isGetAccessor(node);
  if (isMember && ts.isPrivateIdentifier(node.name)) return true;
  if (ts.isClassStaticBlockDeclaration(node)) return true;
  const modifiers = ts.canHaveModifiers(node) ? ts.getModifiers(node) : undefined;
  // A program cannot extend our classes, so it cannot use protected members.
  const hidden = [ts.SyntaxKind.PrivateKeyword, ts.SyntaxKind.ProtectedKeyword];
  return modifiers?.some(({ kind }) => hidden.includes(kind)) === true;
}

it("the index exports every type that a public signature names", () => {
  expect(unexported()).toEqual([]);
});
